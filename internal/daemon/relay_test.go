// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/path/forward"
	"github.com/meshd/meshd/internal/path/relaynft"
	"github.com/meshd/meshd/internal/path/relayudp"
	"github.com/meshd/meshd/internal/state"
)

// fakeRelayKernel notes what it is to do. What it forwards outlives the relay.
type fakeRelayKernel struct {
	counts  forward.Counts
	forward bool // there is a table
	serving int
	rate    uint64
}

func (k *fakeRelayKernel) Adopt(all []path.Kept) ([]path.Kept, error) { return all, nil }

func (k *fakeRelayKernel) Open(o relaynft.Options) (kernelForwarder, error) {
	k.forward, k.rate = true, o.MaxRate
	k.serving++
	return fakeForwarder{k}, nil
}

func (k *fakeRelayKernel) Remove() (bool, error) {
	had := k.forward
	k.forward = false
	return had, nil
}

type fakeForwarder struct{ k *fakeRelayKernel }

func (f fakeForwarder) Serve(ctx context.Context) { <-ctx.Done() }

func (f fakeForwarder) Counts() forward.Counts { return f.k.counts }

func (f fakeForwarder) Close() error {
	f.k.serving--
	return nil
}

// TestRelayServer has a relay begin, get another limit, and end: what is for a relay is gossip's
// while there is none.
func TestRelayServer(t *testing.T) {
	beside, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	defer beside.Close()
	private := func(seed byte) *ecdh.PrivateKey {
		k, err := ecdh.X25519().NewPrivateKey(bytes.Repeat([]byte{seed}, 32))
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	var counter uint64
	inKernel := &fakeRelayKernel{}
	s := &relayServer{ctx: t.Context(), dir: t.TempDir(), log: slog.New(slog.DiscardHandler), kernel: inKernel, started: time.Now(), o: relayudp.Options{
		Cluster: "test", Self: mesh.ID{1}, PathKey: private(1), Beside: beside, Counter: func() uint64 { counter++; return counter },
	}}
	client, err := net.DialUDP("udp4", nil, beside.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	keys, err := path.NewKeys("test", path.ShortOf(mesh.ID{2}), path.ShortOf(mesh.ID{1}), private(2), private(1).PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	var asked uint64
	var token path.Token // of the last answer
	bind := func() []byte {
		asked++
		return keys.Seal(path.Message{Op: path.Bind, Number: uint32(asked), Token: token}, asked)
	}
	buf := make([]byte, 2048)
	for _, c := range []*net.UDPConn{client, beside} {
		if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	serve := func(serves bool, maxRate int) {
		t.Helper()
		w := node.RelayService{Serves: serves}
		if serves {
			w.Nodes = []node.RelayNode{
				{ID: mesh.ID{2}, PathKey: [32]byte(private(2).PublicKey().Bytes())},
				{ID: mesh.ID{3}, PathKey: [32]byte{1}}, // no key can be agreed on with this one
			}
		}
		if err := s.Serve(w, [32]byte{3}, maxRate); err != nil {
			t.Fatal(err)
		}
		if inKernel.forward != serves || inKernel.serving != map[bool]int{true: 1}[serves] || serves && inKernel.rate != uint64(maxRate) {
			t.Errorf("the kernel forwards: %t, with a limit of %d, by %d; want %t and %d", inKernel.forward, inKernel.rate, inKernel.serving, serves, maxRate)
		}
		if _, err := client.Write(bind()); err != nil {
			t.Fatal(err)
		}
		if !serves {
			if n, err := beside.Read(buf); err != nil || n == 0 {
				t.Fatalf("gossip got %d bytes, %v, want the datagram", n, err)
			}
			return
		}
		n, err := client.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		m, err := keys.Open(buf[:n])
		if err != nil || m.Op != path.Bound {
			t.Errorf("got message %d, %v, want the relay's answer", m.Op, err)
		}
		token = m.Token
	}
	serve(false, 0)
	serve(true, 0)
	first := s.relay
	serve(true, 0)
	if s.relay != first {
		t.Error("the relay was opened anew although nothing has changed")
	}
	serve(true, 100_000)
	if s.relay == first {
		t.Error("the relay goes on with the old limit")
	}
	inKernel.counts = forward.Counts{Packets: 2, Bytes: 300, Limited: 4}
	if got, counts, ok := s.Status(); !ok || counts.Packets != 2 || got.Datagrams != 2 || got.Bytes != 300 || got.Dropped[relayudp.RateLimit] != 4 {
		t.Errorf("got the status %+v, %+v, %t, want what the kernel has done", got, counts, ok)
	}
	serve(false, 0)
	if _, _, ok := s.Status(); ok {
		t.Error("there is a status although nothing is forwarded")
	}
	serve(true, 0)

	// A relay that fails is opened anew.
	first = s.relay
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	s.ended <- <-s.ended // once it has ended
	serve(true, 0)
	if s.relay == first {
		t.Error("the relay that has failed goes on")
	}

	// What it knows is there after it was killed, and a damaged file does no harm.
	if serve(true, 0); token != (path.Token{}) {
		t.Fatal("the node is not bound")
	}
	s.keep()
	for _, damaged := range []bool{false, true} {
		file := filepath.Join(s.dir, state.RelayFile)
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if damaged {
			content = content[1:]
		}
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, content, 0o600); err != nil { // as it was when it was killed
			t.Fatal(err)
		}
		if serve(true, 0); (token != path.Token{}) != damaged {
			t.Errorf("damaged %t: the node is asked to prove where it is: %t", damaged, !damaged)
		}
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
}

// TestKernelForwardsAfterRestart has a relay stop, which leaves what the kernel forwards. Before the next
// one knows whether it is to serve, that goes on, but not for longer than sessions last; nor at all on
// a node that is no relay.
func TestKernelForwardsAfterRestart(t *testing.T) {
	k := &fakeRelayKernel{forward: true}
	s := &relayServer{ctx: t.Context(), dir: t.TempDir(), log: slog.New(slog.DiscardHandler), kernel: k, started: time.Now()}
	serve := func(w node.RelayService) {
		t.Helper()
		if err := s.Serve(w, [32]byte{3}, 0); err != nil {
			t.Fatal(err)
		}
	}
	serve(node.RelayService{})
	if !k.forward {
		t.Error("the kernel forwards nothing any more although the relay is about to serve again")
	}
	s.started = time.Now().Add(-leftoverFor)
	serve(node.RelayService{})
	if k.forward {
		t.Error("the kernel has a table although no session is left in it")
	}
	k.forward, s.cleared, s.started = true, false, time.Now()
	serve(node.RelayService{Never: true})
	if k.forward {
		t.Error("the kernel forwards although this node is to be no relay")
	}
}
