// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdh"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/path/rawudp"
)

// patience is how long a test waits for something; a loaded machine may be slow.
const patience = 2 * time.Minute

// namespace is a network namespace. It ends when nothing is open in it.
type namespace netns.NsHandle

// inside calls f on a thread of its own that is in the namespace.
func (n namespace) inside(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := netns.Set(netns.NsHandle(n))
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

func newNamespace(t *testing.T) namespace {
	t.Helper()
	made := make(chan namespace)
	var err error
	go func() {
		runtime.LockOSThread()
		var h netns.NsHandle
		h, err = netns.New()
		made <- namespace(h)
	}()
	n := <-made
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h := netns.NsHandle(n); _ = h.Close() })
	n.run(t, "ip link set lo up")
	return n
}

// run runs command lines in the namespace, split at blanks.
func (n namespace) run(t *testing.T, lines ...string) {
	t.Helper()
	for _, line := range lines {
		f := strings.Fields(line)
		err := n.inside(func() error {
			out, err := exec.Command(f[0], f[1:]...).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w\n%s", err, out)
			}
			return nil
		})
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
	}
}

// nft replaces the rules of the namespace.
func (n namespace) nft(t *testing.T, rules string) {
	t.Helper()
	err := n.inside(func() error {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader("flush ruleset\n" + rules)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("nft: %v", err)
	}
}

// cable links two namespaces. Each end has a name and addresses with prefix lengths.
func cable(t *testing.T, a namespace, nameA, addrsA string, b namespace, nameB, addrsB string) {
	t.Helper()
	err := a.inside(func() error {
		out, err := exec.Command("ip", "link", "add", nameA, "type", "veth", "peer", "name", "moving").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		link, err := netlink.LinkByName("moving")
		if err != nil {
			return err
		}
		return netlink.LinkSetNsFd(link, int(b))
	})
	if err != nil {
		t.Fatal(err)
	}
	b.run(t, "ip link set moving name "+nameB)
	for _, end := range []struct {
		namespace
		name, addrs string
	}{{a, nameA, addrsA}, {b, nameB, addrsB}} {
		for _, addr := range strings.Fields(end.addrs) {
			end.run(t, "ip addr add "+addr+" dev "+end.name)
		}
		end.run(t, "ip link set "+end.name+" up")
	}
}

const wireguardPort = 51820

// node is a host in a namespace, with WireGuard in this process, and an agent that uses
// WireGuard's port as it does beside the kernel's.
type node struct {
	namespace
	id       mesh.ID
	private  wgtypes.Key
	pathKey  *ecdh.PrivateKey
	overlay  netip.Addr
	device   *device.Device
	tunnel   *tuntest.ChannelTUN
	counter  atomic.Uint64
	received atomic.Int64 // packets out of the tunnel
	calls    atomic.Int64
	*agentOf
}

// bindInside has WireGuard's sockets in a namespace.
type bindInside struct {
	conn.Bind
	namespace
}

func (b bindInside) Open(port uint16) (fns []conn.ReceiveFunc, actual uint16, err error) {
	err = b.inside(func() error {
		var err error
		fns, actual, err = b.Bind.Open(port)
		return err
	})
	return fns, actual, err
}

// portInside sends from a namespace.
type portInside struct {
	*rawudp.Conn
	namespace
}

func (p portInside) Send(packet rawudp.Packet) error {
	return p.inside(func() error { return p.Conn.Send(packet) })
}

// newNode starts WireGuard in a namespace.
func newNode(t *testing.T, n namespace, num byte) *node {
	t.Helper()
	private, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	h := &node{
		namespace: n, id: mesh.ID{num}, private: private, pathKey: privateKey(t, num),
		overlay: netip.AddrFrom4([4]byte{10, 4, 0, num}), tunnel: tuntest.NewChannelTUN(),
	}
	h.device = device.NewDevice(h.tunnel.TUN(), bindInside{conn.NewStdNetBind(), n}, device.NewLogger(device.LogLevelSilent, ""))
	if err := h.device.IpcSet(fmt.Sprintf("private_key=%x\nlisten_port=%d\n", private[:], wireguardPort)); err != nil {
		t.Fatal(err)
	}
	if err := h.device.Up(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-h.tunnel.Inbound:
				h.received.Add(1)
			case <-ctx.Done():
				return
			}
		}
	})
	t.Cleanup(wg.Wait)
	t.Cleanup(h.device.Close)
	t.Cleanup(cancel)
	return h
}

// start starts, or starts again, the agent.
func (h *node) start(t *testing.T, other *node) {
	t.Helper()
	var port *rawudp.Conn
	err := h.inside(func() error {
		var err error
		port, err = rawudp.Open(rawudp.Options{Port: wireguardPort, Magic: path.Beginnings()})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	a := Start(ctx, Options{
		Cluster: "test", Self: h.id, Key: h.private.PublicKey(), PathKey: h.pathKey,
		Counter: func() uint64 { return h.counter.Add(1) },
		Port:    portInside{port, h.namespace}, Device: deviceOf{h.device},
		Call: func(_ mesh.ID, sealed []byte) {
			h.calls.Add(1)
			other.Called(h.id, sealed)
		},
		Logger: slog.New(slog.DiscardHandler),
	})
	stop := sync.OnceFunc(func() {
		cancel()
		if err := port.Close(); err != nil {
			t.Error(err)
		}
		if err := a.Wait(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	h.agentOf = &agentOf{a, stop}
}

// talk has the node send a packet to the other one through the tunnel every 50 ms.
func (h *node) talk(t *testing.T, other *node) {
	t.Helper()
	peer := other.private.PublicKey()
	if err := h.device.IpcSet(fmt.Sprintf("public_key=%x\nallowed_ip=%s/32\n", peer[:], other.overlay)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			select {
			case h.tunnel.Outbound <- tuntest.Ping(other.overlay, h.overlay):
			case <-ctx.Done():
				return
			}
		}
	})
	t.Cleanup(wg.Wait)
	t.Cleanup(cancel)
}

func (h *node) peer(candidates ...path.Candidate) Peer {
	return Peer{ID: h.id, Key: h.private.PublicKey(), PathKey: h.pathKey.PublicKey(), Candidates: candidates}
}

// deviceOf is the agent's Device.
type deviceOf struct{ *device.Device }

func (d deviceOf) Traffic() (map[wgtypes.Key]path.Traffic, error) {
	var b bytes.Buffer
	if err := d.IpcGetOperation(&b); err != nil {
		return nil, err
	}
	all := map[wgtypes.Key]path.Traffic{}
	var key wgtypes.Key
	for s := bufio.NewScanner(&b); s.Scan(); {
		name, value, _ := strings.Cut(s.Text(), "=")
		t := all[key]
		var err error
		switch name {
		case "public_key":
			t = path.Traffic{}
			_, err = hex.Decode(key[:], []byte(value))
		case "endpoint":
			t.Endpoint, err = netip.ParseAddrPort(value)
		case "tx_bytes":
			t.Sent, err = strconv.ParseUint(value, 10, 64)
		case "rx_bytes":
			t.Received, err = strconv.ParseUint(value, 10, 64)
		default:
			continue
		}
		if err != nil {
			return nil, err
		}
		all[key] = t
	}
	return all, nil
}

func (d deviceOf) SetEndpoint(peer wgtypes.Key, to netip.AddrPort) error {
	return d.IpcSet(fmt.Sprintf("public_key=%x\nupdate_only=true\nendpoint=%s\n", peer[:], to))
}

// eventually waits until a condition holds, and returns how long that took.
func eventually(t *testing.T, what string, ok func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for ; !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > patience {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
	return time.Since(began)
}

// uses waits until a node uses an address for its peer, proved, and packets pass both ways.
func (h *node) uses(t *testing.T, other *node, want string) time.Duration {
	t.Helper()
	took := eventually(t, fmt.Sprintf("node %d uses %s", h.id[0], want), func() bool {
		s := h.Status()[0]
		return s.Path.Addr == netip.MustParseAddrPort(want) && s.Proved
	})
	return took + passes(t, h, other)
}

// passes waits until packets pass both ways.
func passes(t *testing.T, a, b *node) time.Duration {
	t.Helper()
	atA, atB := a.received.Load(), b.received.Load()
	return eventually(t, "packets pass both ways", func() bool { return a.received.Load() > atA && b.received.Load() > atB })
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("namespaces need root")
	}
	t.Parallel()
}

// TestPathOfWireGuard has real WireGuard packets take the path that works: the second
// candidate while the first one is dead, then the first one when the second is cut. A new
// agent keeps it.
func TestPathOfWireGuard(t *testing.T) {
	needRoot(t)
	na, nb := newNamespace(t), newNamespace(t)
	cable(t, na, "eth0", "192.0.2.1/24", nb, "eth0", "192.0.2.2/24 192.0.2.3/24")
	cut := func(addr string) {
		nb.nft(t, "table inet cut { chain in { type filter hook input priority 0; ip daddr "+addr+" drop; }; }")
	}
	cut("192.0.2.2")

	a, b := newNode(t, na, 1), newNode(t, nb, 2)
	a.talk(t, b)
	b.talk(t, a)
	a.start(t, b)
	b.start(t, a)
	toB := []Peer{b.peer(direct("192.0.2.2:51820"), direct("192.0.2.3:51820"))}
	a.SetPeers(toB)
	b.SetPeers([]Peer{a.peer(direct("192.0.2.1:51820"))})
	t.Logf("second candidate: after %v", a.uses(t, b, "192.0.2.3:51820"))
	if seen := a.Status()[0].Seen; len(seen) != 1 || seen[0] != netip.MustParseAddrPort("192.0.2.1:51820") {
		t.Errorf("seen at: got %v, want 192.0.2.1:51820", seen)
	}

	cut("192.0.2.3")
	t.Logf("first candidate: after %v", a.uses(t, b, "192.0.2.2:51820"))

	a.stop()
	passes(t, a, b)
	a.start(t, b)
	a.SetPeers(toB)
	if s := a.Status()[0]; s.Path.Addr != netip.MustParseAddrPort("192.0.2.2:51820") {
		t.Errorf("a new agent: got %v, want WireGuard's endpoint", s.Path)
	}
	a.uses(t, b, "192.0.2.2:51820")
}

// TestPunchRouter has one end behind a router with NAT and the other one behind a firewall,
// both of which let in only answers.
func TestPunchRouter(t *testing.T) {
	needRoot(t)
	na, nr, nb := newNamespace(t), newNamespace(t), newNamespace(t)
	cable(t, na, "eth0", "192.168.1.2/24", nr, "lan", "192.168.1.1/24")
	cable(t, nr, "wan", "203.0.113.1/24", nb, "eth0", "203.0.113.2/24")
	na.run(t, "ip route add default via 192.168.1.1")
	nr.run(t, "sysctl -qw net.ipv4.ip_forward=1")
	nr.nft(t, `table ip router {
		chain nat { type nat hook postrouting priority srcnat; oifname wan masquerade; }
		chain in { type filter hook input priority 0; iifname wan drop; }
		chain through { type filter hook forward priority 0; iifname wan ct state != { established, related } drop; }
	}`)
	nb.nft(t, `table ip firewall {
		chain in { type filter hook input priority 0; iifname eth0 ct state != { established, related } drop; }
	}`)

	a, b := newNode(t, na, 1), newNode(t, nb, 2)
	a.talk(t, b)
	b.talk(t, a)
	a.start(t, b)
	b.start(t, a)
	a.SetPeers([]Peer{b.peer(behindFirewall("203.0.113.2:51820"))})
	b.SetPeers([]Peer{a.peer(behindFirewall("203.0.113.1:51820"))})
	t.Logf("direct: after %v", a.uses(t, b, "203.0.113.2:51820"))
	b.uses(t, a, "203.0.113.1:51820")
	if a.calls.Load() == 0 && b.calls.Load() == 0 {
		t.Error("got no call, want one by gossip")
	}
}
