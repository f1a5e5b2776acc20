// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/state"
)

// streamHost is a host on the loopback that runs gossip and streams. A socket takes the place
// of its WireGuard.
type streamHost struct {
	*daemon
	wireguard *net.UDPConn
	stop      func()
}

func startStreamHost(t *testing.T, number int, extra string) *streamHost {
	t.Helper()
	wireguard, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { wireguard.Close() })
	w := &world{t: t, trace: &trace{names: make(map[mesh.ID]string)}, dir: t.TempDir()}
	w.write("secret", base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{1}, 32)), 0o600)
	w.configure(extra)
	cfg, err := config.Load(filepath.Join(w.dir, "meshd.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	cfg.WireGuard.ListenPort = wireguard.LocalAddr().(*net.UDPAddr).Port
	if cfg.Gossip.Bind.Addr() == (netip.Addr{}) {
		cfg.Gossip.Bind = netip.MustParseAddrPort("127.0.0.1:0")
	}
	h := &streamHost{daemon: newDaemon(Options{Logger: slog.New(slog.DiscardHandler)}, cfg), wireguard: wireguard}
	h.self.Identity = state.Identity{Key: identityKey(number)}
	h.self.instance, h.disk.node.Boot = uint64(time.Now().UnixNano()), uint64(time.Now().Unix())
	ctx, cancel := context.WithCancel(t.Context())
	started, ended := make(chan struct{}), make(chan error, 1)
	tasks := []task{
		{"gossip", func(ctx context.Context, ready func()) error { return h.runGossip(ctx, ready, gossip.Remembered{}) }},
		{"streams", h.runStreams},
		{"test", func(ctx context.Context, ready func()) error {
			close(started)
			ready()
			<-ctx.Done()
			return nil
		}},
	}
	go func() { ended <- runTasks(ctx, tasks) }()
	h.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		ended <- nil
	}
	t.Cleanup(h.stop)
	select {
	case <-started:
	case err := <-ended:
		t.Fatal(err)
	}
	return h
}

// passes has a host's WireGuard send to an endpoint until something arrives at another's, and
// returns from where.
func passes(t *testing.T, from *streamHost, endpoint func() netip.AddrPort, to *streamHost) netip.AddrPort {
	t.Helper()
	buf := make([]byte, 100)
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
		text := fmt.Sprintf("to %s, %d", to.self.ID(), time.Now().UnixNano())
		if at := endpoint(); at.IsValid() {
			if _, err := from.wireguard.WriteToUDPAddrPort([]byte(text), at); err != nil {
				t.Fatal(err)
			}
		}
		if err := to.wireguard.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if n, at, err := to.wireguard.ReadFromUDPAddrPort(buf); err == nil && bytes.HasPrefix(buf[:n], []byte("to "+to.self.ID().String())) {
			return at
		}
	}
	t.Fatal("nothing arrives")
	return netip.AddrPort{}
}

// TestStreamsCarryWireGuard has datagrams of WireGuard go over a stream both ways, and again after
// the daemon of either side was restarted.
func TestStreamsCarryWireGuard(t *testing.T) {
	// A port that is free, and stays the same over restarts.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	startA := func() *streamHost {
		a := startStreamHost(t, 0, fmt.Sprintf("join: [\"127.0.0.1:%d\"]\n", port))
		for a.gossip.View().Alone {
			time.Sleep(10 * time.Millisecond)
		}
		return a
	}
	startB := func() *streamHost {
		return startStreamHost(t, 1, fmt.Sprintf("gossip: {bind: \"127.0.0.1:%d\"}\n", port))
	}
	b := startB()
	a := startA()
	exchange := func() {
		t.Helper()
		if err := a.streams.Keep([]mesh.ID{b.self.ID()}); err != nil {
			t.Fatal(err)
		}
		seen := passes(t, a, func() netip.AddrPort { return a.readStreams()[0].Own }, b)
		passes(t, b, func() netip.AddrPort { return seen }, a)
		if all := b.readStreams(); len(all) != 1 || all[0].Own != seen || all[0].Node != a.self.ID() || all[0].Dialled {
			t.Errorf("the other side has %+v, want the stream from %s", all, a.self.ID())
		}
	}
	exchange()
	select {
	case <-b.streams.Changed():
	default:
		t.Error("a stream has come, and nothing says so")
	}
	b.stop()
	b = startB()
	exchange()
	a.stop()
	a = startA()
	exchange()
}

func TestStreamAddresses(t *testing.T) {
	for listen, want := range map[string]string{"": "[]", ":443": "[:443]", "192.0.2.1:443": "[192.0.2.1:443]"} {
		c, err := config.Parse("test", fmt.Appendf(nil, "secret-file: /secret\nrelay: {listen: %q}\n", listen))
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(streamAddresses(c)); got != want {
			t.Errorf("%q: got %s, want %s", listen, got, want)
		}
	}
}
