// SPDX-License-Identifier: Apache-2.0

package https

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"testing"

	"github.com/meshd/meshd/internal/mesh"
)

func identity(n byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize))
}

// handshake connects a client to a server, and returns what the client knows then, and its
// first message.
func handshake(t *testing.T, client, server *tls.Config) (tls.ConnectionState, []byte, error) {
	t.Helper()
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	sent := &recorder{Conn: near}
	accepted := make(chan error, 1)
	go func() {
		conn := tls.Server(far, server)
		accepted <- conn.Handshake()
		_, _ = io.Copy(io.Discard, far)
	}()
	conn := tls.Client(sent, client)
	err := conn.Handshake()
	if err == nil {
		err = <-accepted
	}
	return conn.ConnectionState(), sent.first, err
}

type recorder struct {
	net.Conn
	first []byte
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.first == nil {
		r.first = bytes.Clone(b)
	}
	return r.Conn.Write(b)
}

func TestHandshake(t *testing.T) {
	server, err := Server(identity(1))
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"aws.example.com", "203.0.113.1", ""} {
		state, first, err := handshake(t, Client(host), server)
		if err != nil {
			t.Fatal(err)
		}
		if id, ok := IdentityOf(state); !ok || id != mesh.IDOf(identity(1).Public().(ed25519.PublicKey)) {
			t.Errorf("identity: got %v, %v", id, ok)
		}
		// Networks that look for HTTPS see the beginning of a handshake in one packet.
		if !bytes.HasPrefix(first, []byte{0x16, 0x03, 0x01}) || len(first) > 512 {
			t.Errorf("the first message begins with %x and has %d bytes, want 160301, and at most 512", first[:3], len(first))
		}
		if got, want := bytes.Contains(first, []byte(host)) && host != "", host == "aws.example.com"; got != want {
			t.Errorf("host %q: it is named: %v, want %v", host, got, want)
		}
		if !bytes.Contains(first, []byte("http/1.1")) {
			t.Error("the first message offers no HTTP")
		}
	}
	// A client that does not know meshd, and offers another protocol.
	if _, _, err := handshake(t, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}, server); err != nil {
		t.Errorf("another client: %v", err)
	}
	if _, _, err := handshake(t, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}, server); err == nil {
		t.Error("an old version is accepted")
	}
}

// The certificate stays the same, so that a scanner learns nothing from how often a daemon starts.
func TestCertificate(t *testing.T) {
	a, err := Certificate(identity(1))
	if err != nil {
		t.Fatal(err)
	}
	b, err := Certificate(identity(1))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Certificate[0], b.Certificate[0]) {
		t.Error("it is another one each time")
	}
	c, err := x509.ParseCertificate(a.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CheckSignature(x509.PureEd25519, c.RawTBSCertificate, c.Signature); err != nil {
		t.Errorf("signature: %v", err)
	}
}

// A certificate that is not a node's stands for nobody.
func TestIdentityOfOthers(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(name string, public, private any) tls.Certificate {
		t.Helper()
		template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}}
		der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
		if err != nil {
			t.Fatal(err)
		}
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}
	}
	ours, err := Certificate(identity(1))
	if err != nil {
		t.Fatal(err)
	}
	chain := tls.Certificate{Certificate: append(ours.Certificate, sign("www.example.com", &key.PublicKey, key).Certificate...), PrivateKey: ours.PrivateKey}
	for name, c := range map[string]tls.Certificate{
		"a web server":                sign("www.example.com", &key.PublicKey, key),
		"another key":                 sign(mesh.IDOf(identity(1).Public().(ed25519.PublicKey)).String(), &key.PublicKey, key),
		"a web server with ed25519":   sign("www.example.com", identity(2).Public(), identity(2)),
		"a certificate and its chain": chain,
	} {
		state, _, err := handshake(t, Client(""), &tls.Config{Certificates: []tls.Certificate{c}})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if id, ok := IdentityOf(state); ok {
			t.Errorf("%s: got %v", name, id)
		}
	}
	if _, ok := IdentityOf(tls.ConnectionState{}); ok {
		t.Error("no certificate: got an identity")
	}
}
