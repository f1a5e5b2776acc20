// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/mesh"
)

const (
	port    = 51820
	tunnels = "10.99.1." // addresses of the devices
	links   = "10.99.0." // addresses beneath them
)

// host is a network namespace with WireGuard in it.
type host struct {
	t      testing.TB
	n      int // 1 or 2: the last byte of its addresses
	ns     netns.NsHandle
	key    wgtypes.Key
	dev    *device.Device
	id     mesh.ID
	gossip *gossip.Gossip
	// overTLS is where gossip accepts streams of TLS.
	overTLS netip.AddrPort
	*Carrier
}

// in calls f on a thread in the host's namespace. Sockets that f opens stay in it.
func (h *host) in(f func() error) {
	h.t.Helper()
	if err := h.try(f); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) try(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // without unlocking, so that the thread ends with the goroutine
		if err := netns.Set(h.ns); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// run runs command lines in the host's namespace.
func (h *host) run(lines ...string) {
	h.t.Helper()
	h.in(func() error { return runAll(lines) })
}

func runAll(lines []string) error {
	for _, line := range lines {
		f := strings.Fields(line)
		if out, err := exec.Command(f[0], f[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", line, err, out)
		}
	}
	return nil
}

// newHosts returns two hosts with a link between them.
func newHosts(t testing.TB) [2]*host {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	var hosts [2]*host
	for i := range hosts {
		h := &host{t: t, n: i + 1}
		// The thread ends with the goroutine, the handle keeps the namespace.
		created := make(chan error)
		go func() {
			runtime.LockOSThread()
			var err error
			h.ns, err = netns.New()
			created <- err
		}()
		if err := <-created; err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = h.ns.Close() })
		var err error
		if h.key, err = wgtypes.GeneratePrivateKey(); err != nil {
			t.Fatal(err)
		}
		hosts[i] = h
	}
	hosts[0].in(func() error {
		return runAll([]string{
			"ip link set lo up",
			fmt.Sprintf("ip link add link0 type veth peer name link0 netns /proc/%d/fd/%d", os.Getpid(), int(hosts[1].ns)),
			"ip addr add " + links + "1/24 dev link0", "ip link set link0 up",
		})
	})
	hosts[1].run("ip link set lo up", "ip addr add "+links+"2/24 dev link0", "ip link set link0 up")
	for i, h := range hosts {
		h.startWireGuard(hosts[1-i])
	}
	return hosts
}

// startWireGuard starts WireGuard with the other host as its peer.
func (h *host) startWireGuard(peer *host) {
	h.t.Helper()
	h.in(func() error {
		device0, err := tun.CreateTUN("wg0", 1420)
		if err != nil {
			return err
		}
		h.dev = device.NewDevice(device0, hostBind{conn.NewStdNetBind(), h}, device.NewLogger(device.LogLevelSilent, ""))
		h.t.Cleanup(h.dev.Close)
		public := peer.key.PublicKey()
		err = h.dev.IpcSet(fmt.Sprintf("private_key=%s\nlisten_port=%d\npublic_key=%s\nallowed_ip=%s%d/32\n",
			hex.EncodeToString(h.key[:]), port, hex.EncodeToString(public[:]), tunnels, peer.n))
		if err != nil {
			return err
		}
		return h.dev.Up()
	})
	h.run(fmt.Sprintf("ip addr add %s%d/24 dev wg0", tunnels, h.n), "ip link set wg0 up")
}

// hostBind opens WireGuard's sockets in the host's namespace. WireGuard opens them on any
// thread, and again whenever the link goes down and up.
type hostBind struct {
	conn.Bind
	host *host
}

func (b hostBind) Open(port uint16) (fns []conn.ReceiveFunc, actual uint16, err error) {
	err = b.host.try(func() error {
		fns, actual, err = b.Bind.Open(port)
		return err
	})
	return fns, actual, err
}

// setEndpoint tells WireGuard where its peer is.
func (h *host) setEndpoint(peer *host, to netip.AddrPort) {
	h.t.Helper()
	public := peer.key.PublicKey()
	if err := h.dev.IpcSet(fmt.Sprintf("public_key=%s\nupdate_only=true\nendpoint=%s\n", hex.EncodeToString(public[:]), to)); err != nil {
		h.t.Fatal(err)
	}
}

func addrPort(network string, n, port int) string {
	return net.JoinHostPort(fmt.Sprint(network, n), fmt.Sprint(port))
}

// dial opens a TCP connection from one host to the other.
func (h *host) dial(to string) (c net.Conn, err error) {
	err = h.try(func() error {
		c, err = (&net.Dialer{Timeout: patience}).Dial("tcp", to)
		return err
	})
	return c, err
}

func (h *host) listen(at string) (l net.Listener) {
	h.t.Helper()
	h.in(func() (err error) {
		l, err = net.Listen("tcp", at)
		return err
	})
	h.t.Cleanup(func() { _ = l.Close() })
	return l
}

// dropUDP drops what arrives by UDP over the link.
func (h *host) dropUDP() {
	h.t.Helper()
	h.run("nft add table inet test",
		"nft add chain inet test input { type filter hook input priority 0 ; }",
		"nft add rule inet test input iifname link0 meta l4proto udp drop")
}

// tunnelled returns both ends of a TCP connection through the tunnel.
func tunnelled(t testing.TB, from, to *host) (near, far net.Conn) {
	t.Helper()
	l := to.listen(addrPort(tunnels, to.n, 0))
	near, err := from.dial(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = near.Close() })
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = far.Close() })
	return near, far
}

// WireGuard connects two hosts between which UDP is dropped, over a stream across the same
// link.
func TestWireGuardWithoutUDP(t *testing.T) {
	hosts := newHosts(t)
	a, b := hosts[0], hosts[1]
	a.id, b.id = mesh.ID{1}, mesh.ID{2}
	l := b.listen(addrPort(links, 2, 7946))
	for _, h := range hosts {
		h.dropUDP()
		h.Carrier = New(Options{WireGuard: port, Dial: func(context.Context, mesh.ID) (net.Conn, error) {
			c, err := h.dial(l.Addr().String())
			if err != nil {
				return nil, err
			}
			far, err := l.Accept()
			if err != nil {
				return nil, errors.Join(err, c.Close())
			}
			return c, b.try(func() error {
				b.Accept(a.id, far)
				return nil
			})
		}})
		t.Cleanup(h.Close)
	}
	a.in(func() error { return a.Keep([]mesh.ID{b.id}) })
	own, _ := a.Endpoints(b.id)
	a.setEndpoint(b, own)
	near, far := tunnelled(t, a, b)
	for _, way := range []struct{ from, to net.Conn }{{near, far}, {far, near}} {
		const size = 1 << 20
		go func() { _, _ = way.from.Write(make([]byte, size)) }()
		if err := way.to.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, way.to, size); err != nil {
			t.Error(err)
		}
	}
}

// startGossip starts gossip outside of the hosts' namespaces, so streams do not cross the link.
func (h *host) startGossip() {
	h.t.Helper()
	_, identity, err := ed25519.GenerateKey(nil)
	if err != nil {
		h.t.Fatal(err)
	}
	h.id = mesh.IDOf(identity.Public().(ed25519.PublicKey))
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		h.t.Fatal(err)
	}
	h.overTLS = free.Addr().(*net.TCPAddr).AddrPort()
	free.Close()
	h.gossip, err = gossip.Start(context.Background(), gossip.Options{
		Identity: identity, Secrets: [][32]byte{{1}}, Boot: 1, Instance: uint64(h.n), Bind: "127.0.0.1:0",
		Listen: []string{h.overTLS.String()},
		Cluster: mesh.Cluster{
			Name: "test", Trust: mesh.TrustOpen, Mode: mesh.ModeFull, Encapsulation: mesh.EncapsulationAlways, Gateways: 1,
			Overlay: []netip.Prefix{netip.MustParsePrefix("10.4.0.0/16")},
			Pods:    []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}, PodPrefix: []int{24},
			Services: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
		},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = h.gossip.Stop() })
}

// acceptIn accepts streams in a host's namespace.
type acceptIn struct{ *host }

func (a acceptIn) Accept(node mesh.ID, conn net.Conn) {
	_ = a.try(func() error {
		a.Carrier.Accept(node, conn)
		return nil
	})
}

// startCarriers has both hosts open streams to each other with gossip's greeting and encryption.
func startCarriers(t testing.TB, hosts [2]*host) {
	t.Helper()
	for i, h := range hosts {
		h.startGossip()
		h.Carrier = New(Options{
			WireGuard: port, Gossip: h.gossip.Carried,
			Dial: func(ctx context.Context, to mesh.ID) (net.Conn, error) {
				return h.gossip.DialCarrier(ctx, to, hosts[1-i].overTLS)
			},
		})
		t.Cleanup(h.Close)
		h.gossip.SetCarrier(acceptIn{h})
	}
}

// Gossip's own packets pass where nothing but the stream connects two nodes.
func TestStreamOfGossip(t *testing.T) {
	hosts := newHosts(t)
	startCarriers(t, hosts)
	a, b := hosts[0], hosts[1]
	a.in(func() error { return a.Keep([]mesh.ID{b.id}) })
	own, _ := a.Endpoints(b.id)
	a.dropUDP()
	b.dropUDP()
	a.setEndpoint(b, own)
	near, far := tunnelled(t, a, b)
	go func() { _, _ = near.Write([]byte("hello")) }()
	got := make([]byte, 5)
	if err := far.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(far, got); err != nil || string(got) != "hello" {
		t.Errorf("got %q, %v, want hello", got, err)
	}
}

// BenchmarkThroughput compares TCP through the tunnel over UDP and over a stream. Both ends
// of WireGuard and of the stream share this machine's processors.
func BenchmarkThroughput(b *testing.B) {
	hosts := newHosts(b)
	startCarriers(b, hosts)
	from, to := hosts[0], hosts[1]
	from.in(func() error { return from.Keep([]mesh.ID{to.id}) })
	over, _ := from.Endpoints(to.id)
	speed := map[string]float64{}
	for _, tt := range []struct {
		name     string
		endpoint netip.AddrPort
	}{
		{"direct", netip.MustParseAddrPort(addrPort(links, 2, port))},
		{"stream", over},
	} {
		from.setEndpoint(to, tt.endpoint)
		near, far := tunnelled(b, from, to)
		b.Run(tt.name, func(b *testing.B) {
			const size = 1 << 20
			b.SetBytes(size)
			piece := make([]byte, size)
			received := make(chan error, 1)
			go func() {
				_, err := io.CopyN(io.Discard, far, int64(b.N)*size)
				received <- err
			}()
			for range b.N {
				if _, err := near.Write(piece); err != nil {
					b.Fatal(err)
				}
			}
			if err := <-received; err != nil {
				b.Fatal(err)
			}
			speed[tt.name] = float64(b.N) * size / b.Elapsed().Seconds()
		})
	}
	b.Logf("tcp_throughput_ratio %.2f, %d frames dropped", speed["stream"]/speed["direct"], from.Status()[0].Dropped)
}
