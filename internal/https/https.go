// SPDX-License-Identifier: Apache-2.0

// Package https lets streams pass where a network lets out nothing but HTTPS: they are TLS
// 1.3, and go through the HTTP proxy that the environment names.
//
// TLS is only the wrapping here. Streams are encrypted and authenticated by gossip inside of
// it, so nothing depends on certificates: whoever ends TLS on the way, as a load balancer or a
// proxy that inspects it, sees what he would see without TLS. A node's certificate is signed
// by its identity, and nobody has to make or renew it.
package https

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// Certificate returns the certificate of an identity, always the same one. Its subject is the
// identity's fingerprint.
func Certificate(identity ed25519.PrivateKey) (tls.Certificate, error) {
	public := identity.Public().(ed25519.PublicKey)
	id := mesh.IDOf(public)
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(id[:]),
		Subject:      pkix.Name{CommonName: id.String()},
		// It never expires: the clocks of small computers start in 1970. The last date is
		// that of RFC 5280, section 4.1.2.5.
		NotBefore:   time.Unix(0, 0),
		NotAfter:    time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(nil, template, template, public, identity) // ed25519 needs no random numbers
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: identity}, nil
}

// Server returns how to accept TLS with the certificate of an identity. Its signature in a
// handshake is over 64 spaces and a text of TLS first (RFC 8446, section 4.4.3), so it can't
// pass for one of meshd's own.
func Server(identity ed25519.PrivateKey) (*tls.Config, error) {
	certificate, err := Certificate(identity)
	if err != nil {
		return nil, err
	}
	c := base()
	c.Certificates = []tls.Certificate{certificate}
	// Each ticket costs the server a key derivation, and streams stay open anyway.
	c.SessionTicketsDisabled = true
	// No ALPN: it would refuse those who offer only other protocols. What the server chooses
	// is encrypted, so nobody on the way misses it.
	return c, nil
}

// Client returns how to open TLS to a host. The host is named in clear text (SNI) if it is a
// name, since proxies that inspect TLS look for that; the standard library leaves out IP
// addresses, as RFC 6066, section 3, demands.
func Client(host string) *tls.Config {
	c := base()
	c.ServerName = host
	c.NextProtos = []string{"http/1.1"} // as programs without HTTP/2 offer it
	// Who the other side is, its greeting proves: see the package's comment.
	c.InsecureSkipVerify = true
	return c
}

// Open runs the handshake of TLS with a host on a dialled connection. It returns the node that has proved
// to be there, and false if the certificate is not a node's.
func Open(ctx context.Context, conn net.Conn, host string) (c *tls.Conn, id mesh.ID, isNode bool, err error) {
	c = tls.Client(conn, Client(host))
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, mesh.ID{}, false, fmt.Errorf("speak TLS: %w", err)
	}
	id, isNode = IdentityOf(c.ConnectionState())
	return c, id, isNode, nil
}

// base is what both sides have. X25519 alone saves the server half of the handshake's time
// beside the default with ML-KEM, and keeps the first message in one packet, where simple
// inspection looks for it. Gossip's own keys are symmetric, so a recording is safe without.
func base() *tls.Config {
	return &tls.Config{
		MinVersion:       tls.VersionTLS13,
		CurvePreferences: []tls.CurveID{tls.X25519},
		// Small records at first would only cost: frames are read whole.
		DynamicRecordSizingDisabled: true,
	}
}

// IdentityOf returns the node that has proved by TLS to be the other side, and false if the
// certificate is not a node's.
func IdentityOf(s tls.ConnectionState) (mesh.ID, bool) {
	if len(s.PeerCertificates) != 1 {
		return mesh.ID{}, false
	}
	c := s.PeerCertificates[0]
	key, ok := c.PublicKey.(ed25519.PublicKey)
	if id := mesh.IDOf(key); ok && c.Subject.CommonName == id.String() {
		return id, true
	}
	return mesh.ID{}, false
}
