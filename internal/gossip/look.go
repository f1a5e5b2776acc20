// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// A host that is to join a mesh looks first whether it could: it greets a node as a daemon would, with an
// identity that is thrown away, and its hello says that it only looks. The node answers with everything that it
// knows, and remembers nothing:
//
//	host                   node
//	hello, proof ────────►
//	             ◄──────── hello, proof, length 4 | objects
//
// The host becomes no member, so nobody takes it for dead afterwards.

// ErrSecret is wrapped by errors of Look if the node has another secret.
var ErrSecret = errors.New("it has another secret")

// Looked is what a node shows to a host that is not in the mesh.
type Looked struct {
	ID      mesh.ID       // of the node
	Cluster mesh.Cluster  // the settings in its file
	Differs []string      // why it would not talk to the host: settings that differ
	Records []mesh.Record // the nodes that it knows; none if it would not talk to the host
}

// lookTimeout bounds how long a node sends what it knows.
const lookTimeout = 10 * time.Second

// Look asks the node at host:port, until ctx ends. The secrets and the settings are those that this host would
// have.
func Look(ctx context.Context, hostport string, secrets [][32]byte, cluster mesh.Cluster) (Looked, error) {
	out, err := look(ctx, hostport, secrets, cluster)
	if errors.Is(err, errRejected) || errors.Is(err, errSealed) {
		err = ErrSecret
	}
	if err != nil {
		return Looked{}, fmt.Errorf("look at %s: %w", hostport, err)
	}
	return out, nil
}

func look(ctx context.Context, hostport string, secrets [][32]byte, cluster mesh.Cluster) (out Looked, err error) {
	ring, err := newKeyring(secrets)
	if err != nil {
		return Looked{}, err
	}
	public, identity, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return Looked{}, fmt.Errorf("make an identity: %w", err)
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", hostport)
	if err != nil {
		return Looked{}, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := conn.SetDeadline(time.Now().Add(helloTimeout + lookTimeout)); err != nil {
		return Looked{}, err
	}
	if to := targetOf(hostport); to.isTLS() {
		if conn, _, err = startTLS(conn, to); err != nil {
			return Looked{}, err
		}
	}
	ours := hello{id: mesh.IDOf(public), instance: 1, port: 1, boot: 1, cluster: cluster, looks: true, aes: hasAES()}
	s, err := handshaker{ring, rand.Reader, identity}.initiate(conn, ours)
	if err != nil {
		return Looked{}, err
	}
	out = Looked{ID: s.peer.id, Cluster: s.peer.cluster}
	for _, d := range differences(cluster, s.peer.cluster, hostport) {
		if d.fatal {
			out.Differs = append(out.Differs, d.text)
		}
	}
	if out.Differs == nil {
		out.Records, err = readLook(s, cluster)
	}
	return out, err
}

// targetOf returns host:port as a target.
func targetOf(hostport string) (to target) {
	host, port, _ := net.SplitHostPort(hostport) // whoever has dialled it could split it
	n, _ := strconv.ParseUint(port, 10, 16)
	to.port = uint16(n)
	if a, err := netip.ParseAddr(host); err == nil {
		to.addr = netip.AddrPortFrom(a.Unmap(), to.port)
	} else {
		to.name = host
	}
	return to
}

// readLook reads the objects that a node knows, and returns the records among them.
func readLook(s *stream, cluster mesh.Cluster) ([]mesh.Record, error) {
	var all []byte
	for len(all) < 4 || len(all) < 4+int(binary.BigEndian.Uint32(all)) {
		frame, err := s.readFrame() // it has a limit for all frames together
		if errors.Is(err, io.EOF) {
			err = errors.New("it has ended the connection: its version of meshd may be an older one")
		}
		if err != nil {
			return nil, err
		}
		all = append(all, frame...)
	}
	raws, err := unpackObjects(all[4:])
	if err != nil {
		return nil, err
	}
	var records []mesh.Record
	for _, raw := range raws {
		o, err := decodeObject(cluster.Name, raw)
		if err != nil {
			continue // of a newer version, or forged by somebody
		}
		if r, ok := o.body.(recordBody); ok && r.Settings == cluster.Hash() {
			records = append(records, r.Record)
		}
	}
	return records, nil
}

// show sends what this node knows to a host that only looks, and closes the stream.
func (t *transport) show(s *stream) {
	defer s.Close()
	if isFatal(differences(t.ourHello().cluster, s.peer.cluster, "")) {
		return // the hello has said it
	}
	if err := s.SetDeadline(time.Now().Add(lookTimeout)); err != nil {
		return
	}
	state := t.state()[1:] // without the version of the format, which the hello has
	_, _ = s.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(state))), state...))
}
