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

// ErrSecret is wrapped by errors of Look if the node has another secret. Another program can't be told from that.
var ErrSecret = errors.New("it has another secret, or is not the gossip of meshd")

// Looked is what a node shows to a host that is not in the mesh.
type Looked struct {
	ID      mesh.ID       // of the node
	Cluster mesh.Cluster  // the settings in its file
	Differs []string      // why it would not talk to the host: settings that differ
	Records []mesh.Record // the nodes that it knows; none if it would not talk to the host
	Clients []mesh.Client // the same of clients
}

// lookTimeout bounds how long a node sends what it knows.
const lookTimeout = 10 * time.Second

// Look greets the node at the other end of a connection, which is over TLS if the node's port is, and asks what it
// knows. Place names the node in texts. The secrets and the settings are those that this host would have. It does
// not close the connection.
func Look(ctx context.Context, conn net.Conn, place string, secrets [][32]byte, cluster mesh.Cluster) (Looked, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	ring, err := newKeyring(secrets)
	if err != nil {
		return Looked{}, err
	}
	public, identity, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return Looked{}, fmt.Errorf("make an identity: %w", err)
	}
	ours := hello{id: mesh.IDOf(public), instance: 1, port: 1, boot: 1, cluster: cluster, looks: true, aes: hasAES()}
	s, err := handshaker{ring, rand.Reader, identity}.initiate(conn, ours)
	if errors.Is(err, errRejected) || errors.Is(err, errSealed) {
		err = ErrSecret
	}
	if err != nil {
		return Looked{}, fmt.Errorf("greet %s: %w", place, err)
	}
	out := Looked{ID: s.peer.id, Cluster: s.peer.cluster}
	for _, d := range differences(cluster, s.peer.cluster, place) {
		if d.fatal {
			out.Differs = append(out.Differs, d.text)
		}
	}
	if out.Differs != nil {
		return out, nil
	}
	if err := out.read(s); err != nil {
		return Looked{}, fmt.Errorf("ask %s what it knows: %w", place, err)
	}
	return out, nil
}

// read reads the objects that the node knows.
func (l *Looked) read(s *stream) error {
	var all []byte
	for len(all) < 4 || len(all) < 4+int(binary.BigEndian.Uint32(all)) {
		frame, err := s.readFrame() // it has a limit for all frames together
		if errors.Is(err, io.EOF) {
			err = errors.New("it has ended the connection: its version of meshd may be an older one")
		}
		if err != nil {
			return err
		}
		all = append(all, frame...)
	}
	raws, err := unpackObjects(all[4:])
	if err != nil {
		return err
	}
	for _, raw := range raws {
		o, err := decodeObject(l.Cluster.Name, raw)
		if err != nil {
			continue // of a newer version, or forged by somebody
		}
		switch body := o.body.(type) {
		case recordBody:
			if body.Settings == l.Cluster.Hash() {
				l.Records = append(l.Records, body.Record)
			}
		case clientBody:
			l.Clients = append(l.Clients, body.Client)
		}
	}
	return nil
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
