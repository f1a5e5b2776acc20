// SPDX-License-Identifier: Apache-2.0

package relayudp

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/path/rawudp"
	"github.com/meshd/meshd/internal/path/relaynft"
)

// insideVar is the name of the test that the child runs in its own namespaces. They go away
// with it.
const insideVar = "RELAYUDP_TEST_INSIDE"

func namespaced(t *testing.T) bool {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("namespaces need root")
	}
	if os.Getenv(insideVar) == t.Name() {
		for _, err := range []error{
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount("tmpfs", "/run", "tmpfs", 0, ""),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		return true
	}
	t.Parallel()
	runtime.LockOSThread() // Pdeathsig is sent when the thread that started the child ends
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.v", "-test.run=^"+regexp.QuoteMeta(t.Name())+"$")
	cmd.Env = append(os.Environ(), insideVar+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("in namespaces: %v\n%s", err, out)
	}
	return false
}

func run(t *testing.T, script string, args ...any) {
	t.Helper()
	cmd := exec.Command("sh", "-exc", fmt.Sprintf(script, args...))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// within calls f on a thread that is in a namespace. Sockets stay in the one in which they
// were made.
func within(t *testing.T, name string, f func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		ns, err := netns.GetFromName(name)
		if err == nil {
			err = netns.Set(ns)
			ns.Close()
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("enter namespace %s: %v", name, err)
	}
}

// home makes a host behind a router that lets in only what answers. The relay does not
// forward packets, so homes reach nothing but it.
func home(t *testing.T, num int) {
	t.Helper()
	run(t, `
		ip netns add router%[1]d
		ip netns add home%[1]d
		ip link add wan%[1]d type veth peer name wan netns router%[1]d
		ip address add 198.51.100.%[1]d1/32 peer 198.51.100.%[1]d2 dev wan%[1]d
		ip link set wan%[1]d up
		ip -n router%[1]d address add 198.51.100.%[1]d2/32 peer 198.51.100.%[1]d1 dev wan
		ip -n router%[1]d link set wan up
		ip -n router%[1]d route add default via 198.51.100.%[1]d1 dev wan
		ip -n router%[1]d link add lan type veth peer name eth0 netns home%[1]d
		ip -n router%[1]d address add 192.168.1.1/24 dev lan
		ip -n router%[1]d link set lan up
		ip -n home%[1]d address add 192.168.1.2/24 dev eth0
		ip -n home%[1]d link set eth0 up
		ip -n home%[1]d link set lo up
		ip -n home%[1]d route add default via 192.168.1.1
		ip netns exec router%[1]d sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'
		ip netns exec router%[1]d nft -f - <<-END
			table ip nat {
				chain out { type nat hook postrouting priority 100; oifname wan masquerade random; }
				chain in { type filter hook forward priority 0; iifname wan ct state new drop; }
			}
		END
	`, num)
}

// peer is a host with WireGuard, and what binds it to the relay.
type peer struct {
	Node
	num     byte
	private wgtypes.Key
	raw     *rawudp.Conn
	device  *device.Device

	mu     sync.Mutex
	binder path.Binder
	keys   *path.Keys
}

func (p *peer) overlay() string { return fmt.Sprintf("10.99.0.%d", p.num) }

// quietTUN is a TUN without events. When its link goes up or down, WireGuard opens its sockets
// anew, in the namespace of whatever thread that is on.
type quietTUN struct {
	tun.Device
	events chan tun.Event // until it is closed
}

func (q *quietTUN) Events() <-chan tun.Event { return q.events }

func (q *quietTUN) Close() error {
	close(q.events)
	return q.Device.Close()
}

const wireguardPort = 51820

// newPeer starts WireGuard in a home.
func newPeer(t *testing.T, num byte) *peer {
	t.Helper()
	own := privateKey(t, num)
	private, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{num: num, private: private, Node: Node{ID: mesh.ID{num}, Key: private.PublicKey(), PathKey: own.PublicKey()}}
	if p.keys, err = path.NewKeys(cluster, path.ShortOf(p.ID), path.ShortOf(relayID), own, privateKey(t, 0xff).PublicKey()); err != nil {
		t.Fatal(err)
	}
	within(t, fmt.Sprintf("home%d", num), func() {
		link, err := tun.CreateTUN("wg0", 1420)
		if err != nil {
			t.Error(err)
			return
		}
		p.device = device.NewDevice(&quietTUN{link, make(chan tun.Event)}, conn.NewStdNetBind(), device.NewLogger(device.LogLevelError, fmt.Sprintf("peer %d: ", num)))
		if err := p.device.IpcSet(fmt.Sprintf("private_key=%s\nlisten_port=%d\n", hex.EncodeToString(private[:]), wireguardPort)); err != nil {
			t.Error(err)
		}
		if err := p.device.Up(); err != nil { // here, so that its sockets are here
			t.Error(err)
		}
		if p.raw, err = rawudp.Open(rawudp.Options{Port: wireguardPort, Magic: [][4]byte{path.Magic()}}); err != nil {
			t.Error(err)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	t.Cleanup(p.device.Close)
	run(t, "ip -n home%d address add %s/24 dev wg0; ip -n home%d link set wg0 up", num, p.overlay(), num)
	return p
}

// bind keeps the peer bound to a relay until the test ends.
func (p *peer) bind(t *testing.T, relay netip.AddrPort) {
	t.Helper()
	p.binder.SetRelays([]path.RelayAddr{{Relay: path.ShortOf(relayID), Addr: relay}}, 2)
	var counter uint64
	step := func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, r := range p.binder.Step(time.Now()) {
			counter++
			if err := p.raw.Send(rawudp.Packet{Payload: p.keys.Seal(r.Message, counter), From: netip.MustParseAddr("192.168.1.2"), To: r.Addr}); err != nil {
				t.Error(err)
			}
		}
	}
	stop := make(chan struct{})
	var tasks sync.WaitGroup
	tasks.Go(func() {
		for tick := time.NewTicker(50 * time.Millisecond); ; step() {
			select {
			case <-stop:
				tick.Stop()
				return
			case <-tick.C:
			}
		}
	})
	tasks.Go(func() {
		err := p.raw.Serve(func(d rawudp.Datagram) {
			p.mu.Lock()
			if m, err := p.keys.Open(d.Payload); err == nil {
				p.binder.Receive(time.Now(), path.ShortOf(relayID), m)
			}
			p.mu.Unlock()
			step()
		})
		if err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		close(stop)
		if err := p.raw.Close(); err != nil {
			t.Error(err)
		}
		tasks.Wait()
	})
}

// add adds another one as a WireGuard peer, whose endpoint is the relay.
func (p *peer) add(t *testing.T, o *peer, relay netip.AddrPort) {
	t.Helper()
	err := p.device.IpcSet(fmt.Sprintf("public_key=%s\nallowed_ip=%s/32\nendpoint=%s\n", hex.EncodeToString(o.Key[:]), o.overlay(), relay))
	if err != nil {
		t.Fatal(err)
	}
}

// capture counts the frames of a link that contain a text, and those of WireGuard's data.
func capture(t *testing.T, text []byte) (plain, sealed *atomic.Int64) {
	t.Helper()
	plain, sealed = new(atomic.Int64), new(atomic.Int64)
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "capture")
	var task sync.WaitGroup
	task.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, err := f.Read(buf)
			if err != nil {
				return
			}
			if bytes.Contains(buf[:n], text) {
				plain.Add(1)
			}
			if payload := 14 + 20 + 8; n > payload+3 && [4]byte(buf[payload:]) == [4]byte{4} {
				sealed.Add(1)
			}
		}
	})
	t.Cleanup(func() { f.Close(); task.Wait() })
	return plain, sealed
}

// relayedPair is two hosts behind NAT, which can't reach each other, with a relay between them.
type relayedPair struct {
	gossip        *net.UDPConn
	relay         *Relay
	nodes         []Node
	peers         []*peer
	relays        []netip.AddrPort // where each home sees the relay
	text          []byte           // what they send each other
	plain, sealed *atomic.Int64    // frames at the relay
	from, to      *net.UDPConn     // on the first one and on the second one
}

// newRelayedPair makes a pair whose WireGuard knows the relay as its peer's endpoint, once both are bound.
func newRelayedPair(t *testing.T) *relayedPair {
	t.Helper()
	run(t, "ip link set lo up")
	p := &relayedPair{gossip: listen(t, ":0"), text: []byte("this is not for the relay")}
	p.relay = serve(t, p.gossip, nil)
	p.plain, p.sealed = capture(t, p.text)
	for _, num := range []byte{1, 2} {
		home(t, int(num))
		n := newPeer(t, num)
		p.peers, p.nodes = append(p.peers, n), append(p.nodes, n.Node)
		p.relays = append(p.relays, port(p.gossip, fmt.Sprintf("198.51.100.%d1", num)))
	}
	if err := p.relay.SetNodes(p.nodes); err != nil {
		t.Fatal(err)
	}
	a, b := p.peers[0], p.peers[1]
	for i, n := range p.peers {
		n.bind(t, p.relays[i])
	}
	a.add(t, b, p.relays[0])
	b.add(t, a, p.relays[1])
	eventually(t, "both nodes are bound", func() bool { return p.relay.Status().Bound == 2 })
	for _, e := range []struct {
		p *peer
		c **net.UDPConn
	}{{a, &p.from}, {b, &p.to}} {
		within(t, fmt.Sprintf("home%d", e.p.num), func() { *e.c = listen(t, e.p.overlay()+":9") })
	}
	return p
}

// pass sends text until it arrives.
func (p *relayedPair) pass(t *testing.T, from, to *net.UDPConn) {
	t.Helper()
	eventually(t, "a packet passes", func() bool {
		if _, err := from.WriteTo(p.text, to.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		if err := to.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		n, _, err := to.ReadFrom(buf)
		return err == nil && bytes.Equal(buf[:n], p.text)
	})
}

// restart closes the relay and opens another one, as another process does.
func (p *relayedPair) restart(t *testing.T) {
	t.Helper()
	kept := p.relay.Kept()
	if err := p.relay.Close(); err != nil {
		t.Fatal(err)
	}
	p.relay = serve(t, p.gossip, func(o *Options) { o.Kept = kept })
	if err := p.relay.SetNodes(p.nodes); err != nil {
		t.Fatal(err)
	}
}

// TestWireGuard has two hosts behind NAT, which can't reach each other, talk through a
// relay. WireGuard knows the relay as its peer's endpoint, and the relay sees no plain text.
func TestWireGuard(t *testing.T) {
	if !namespaced(t) {
		return
	}
	p := newRelayedPair(t)
	p.pass(t, p.from, p.to)
	p.pass(t, p.to, p.from)
	for i, n := range p.peers {
		state, err := n.device.IpcGet()
		if err != nil {
			t.Fatal(err)
		}
		if want := "endpoint=" + p.relays[i].String() + "\n"; !strings.Contains(state, want) {
			t.Errorf("WireGuard's state has no %q:\n%s", want, state)
		}
		eventually(t, "the node knows its router's address", func() bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			bound := n.binder.Bound(time.Now())
			return len(bound) == 1 && bound[0].Seen.Addr().String() == fmt.Sprintf("198.51.100.%d2", n.num)
		})
	}
	eventually(t, "frames are captured", func() bool { return p.sealed.Load() >= 4 })
	if p.plain.Load() > 0 {
		t.Errorf("%d frames at the relay contain plain text", p.plain.Load())
	}

	// The relay starts again: the session goes on with the first packet.
	p.restart(t)
	began := time.Now()
	p.pass(t, p.from, p.to)
	p.pass(t, p.to, p.from)
	t.Logf("packets pass both ways %v after the restart", time.Since(began))
	if n := dropped(p.relay); n > 0 {
		t.Errorf("%d datagrams were dropped after the restart: %v", n, p.relay.Status().Dropped)
	}
}

// TestWireGuardInKernel is the same with a kernel that forwards: what passes does not come to the relay
// any more, and passes also while there is none.
func TestWireGuardInKernel(t *testing.T) {
	if !namespaced(t) {
		return
	}
	p := newRelayedPair(t)
	f, stop := forwardInKernel(t, p)
	p.pass(t, p.from, p.to)
	p.pass(t, p.to, p.from)
	eventually(t, "the kernel forwards both ways", func() bool {
		before := p.relay.Status().Datagrams
		p.pass(t, p.from, p.to)
		p.pass(t, p.to, p.from)
		return p.relay.Status().Datagrams == before
	})
	eventually(t, "what the kernel forwards is counted", func() bool {
		c := f.Counts()
		return c.Packets >= 2 && c.Bytes >= 2*uint64(len(p.text))
	})
	if p.plain.Load() > 0 {
		t.Errorf("%d frames at the relay contain plain text", p.plain.Load())
	}

	// Nobody is at the port.
	stop()
	if err := p.relay.Close(); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		p.pass(t, p.from, p.to)
		p.pass(t, p.to, p.from)
	}
}

// forwardInKernel has the kernel forward for the pair's relay until stop is called, or the test ends.
func forwardInKernel(t *testing.T, p *relayedPair) (f *relaynft.Forwarder, stop func()) {
	t.Helper()
	f, err := relaynft.Open(relaynft.Options{Port: port(p.gossip, "127.0.0.1").Port(), Relay: p.relay, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var serving sync.WaitGroup
	serving.Go(func() { f.Serve(ctx) })
	stop = sync.OnceFunc(func() {
		cancel()
		serving.Wait()
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return f, stop
}
