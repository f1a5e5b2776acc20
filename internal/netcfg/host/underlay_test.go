// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/netcfg/netcfgtest"
	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/path/rawudp"
)

// probe begins as probes do, and is longer than what WireGuard skips as too short.
func probe(text string) []byte {
	magic := path.Magic()
	return append(append(magic[:], make([]byte, 64)...), text...)
}

// serve serves the underlay until the test ends, and returns what arrives.
func serve(t *testing.T, u *Underlay) <-chan rawudp.Datagram {
	t.Helper()
	got, done := make(chan rawudp.Datagram, 1000), make(chan error, 1)
	go func() {
		done <- u.Serve(func(d rawudp.Datagram) {
			d.Payload = append([]byte(nil), d.Payload...)
			got <- d
		})
	}()
	t.Cleanup(func() {
		if err := u.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return got
}

// exchange sends probes to a port of this host until one is served, and answers it.
func exchange(t *testing.T, u *Underlay, got <-chan rawudp.Datagram, port uint16) {
	t.Helper()
	for _, local := range []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()} {
		peer, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(local, 0)))
		if err != nil {
			t.Fatal(err)
		}
		defer peer.Close()
		self := peer.LocalAddr().(*net.UDPAddr).AddrPort()
		eventually(t, "a probe is served", func() bool {
			if _, err := peer.WriteToUDPAddrPort(probe("question"), netip.AddrPortFrom(local, port)); err != nil {
				return false // nobody listens at the moment
			}
			select {
			case d := <-got:
				if d.From != self { // of an earlier exchange
					return false
				}
				if string(d.Payload) != string(probe("question")) || d.To != local || d.Link != 1 {
					t.Errorf("got %q %+v, want the question, to %s by the loopback device", d.Payload, d, local)
				}
				return true
			case <-time.After(20 * time.Millisecond):
				return false
			}
		})
		if err := u.Send(rawudp.Packet{Payload: probe("answer"), From: local, To: self, TTL: 7}); err != nil {
			t.Fatal(err)
		}
		if err := peer.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 200)
		n, from, err := peer.ReadFromUDPAddrPort(buf)
		if err != nil || string(buf[:n]) != string(probe("answer")) || from != netip.AddrPortFrom(local, port) {
			t.Errorf("got %q from %s, %v, want the answer from %s port %d", buf[:n], from, err, local, port)
		}
	}
}

// userspaceAlone is alone, run by this process.
func userspaceAlone() netcfg.State {
	want := alone()
	want.Device.Implementation = netcfg.Userspace
	return want
}

func TestUnderlayFollowsDevice(t *testing.T) {
	if !namespaced(t) {
		return
	}
	h, want := newKernel(t), userspaceAlone()
	u := h.Underlay()
	if err := u.Send(rawudp.Packet{To: netip.MustParseAddrPort("127.0.0.1:9")}); !errors.Is(err, ErrNoPort) {
		t.Errorf("without a device: got %v, want %v", err, ErrNoPort)
	}
	got := serve(t, u)
	mustReconcile(t, h, want)
	checkState(t, h, want) // which observes
	exchange(t, u, got, 51820)

	want.Device.ListenPort = 51821
	mustReconcile(t, h, want)
	checkState(t, h, want)
	exchange(t, u, got, 51821)

	run(t, "ip link del meshd0")
	eventually(t, "device is back", func() bool { return reconcile(h, want) == nil })
	checkState(t, h, want)
	exchange(t, u, got, 51821)
}

// TestUnderlayBesideSockets has WireGuard's sockets in another process, as beside the kernel.
func TestUnderlayBesideSockets(t *testing.T) {
	if !namespaced(t) {
		return
	}
	spec := peerSpec{
		Implementation: netcfg.Userspace, Private: netcfgtest.Key(8), RemotePublic: netcfgtest.Key(16).PublicKey(),
		Self: 1, Remote: 2, Endpoint: netip.MustParseAddrPort("192.0.2.7:51820"),
	}
	other := startPeer(t, "beside", spec, nil)
	h, want := newKernel(t), stateOf(spec)
	u := h.Underlay()
	got := serve(t, u)
	checkState(t, h, want)
	exchange(t, u, got, 51820)
	want.Peers[0].Endpoint = checkPeers(t, u, want)

	want.Device.ListenPort = 51822
	mustReconcile(t, h, want)
	checkState(t, h, want)
	exchange(t, u, got, 51822)

	if err := other.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = other.Wait()
	mustReconcile(t, h, want) // from here on in this process
	checkState(t, h, want)
	exchange(t, u, got, 51822)
}

// checkPeers sets the endpoint of the device's one peer, which it returns, and of one that it
// does not have.
func checkPeers(t *testing.T, u *Underlay, want netcfg.State) netip.AddrPort {
	t.Helper()
	peer, to := want.Peers[0].Key, netip.MustParseAddrPort("[2001:db8::7]:1234")
	stranger := wgtypes.Key(netcfgtest.Key(24).PublicKey())
	for _, key := range []wgtypes.Key{peer, stranger} {
		if err := u.SetEndpoint(key, to); err != nil {
			t.Error(err)
		}
	}
	got, err := u.Traffic()
	if err != nil || len(got) != 1 || got[peer].Endpoint != to {
		t.Errorf("got %v, %v, want the one peer at %s", got, err, to)
	}
	return to
}

func TestUnderlayPeers(t *testing.T) {
	if !namespaced(t) {
		return
	}
	h, want := newKernel(t), userspaceAlone()
	u := h.Underlay()
	if _, err := u.Traffic(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a device: got %v, want %v", err, os.ErrNotExist)
	}
	mustReconcile(t, h, want)
	checkState(t, h, want)

	checkPeers(t, u, want)
	peer := want.Peers[0].Key
	if err := u.SetEndpoint(peer, netip.MustParseAddrPort("127.0.0.1:9")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "traffic grows", func() bool {
		_ = h.InitiateHandshake(t.Context(), netip.MustParseAddr("10.4.0.2"))
		got, err := u.Traffic()
		return err == nil && got[peer].Sent > 0
	})
}

// TestUnderlayDropsInside has probes that arrive by the device: they came through a tunnel.
func TestUnderlayDropsInside(t *testing.T) {
	if !namespaced(t) {
		return
	}
	h, want := newKernel(t), userspaceAlone()
	mustReconcile(t, h, want)
	checkState(t, h, want)
	u := h.Underlay()
	for index, want := range map[int]bool{linkIndex(t, "lo"): false, linkIndex(t, "meshd0"): true} {
		if got, err := u.ownLink(index); got != want || err != nil {
			t.Errorf("link %d: got %t, %v, want %t", index, got, err, want)
		}
	}
	got := serve(t, u)
	u.received <- rawudp.Datagram{Payload: probe("inside"), Link: linkIndex(t, "meshd0")}
	u.received <- rawudp.Datagram{Payload: probe("gone"), Link: 12345}
	u.received <- rawudp.Datagram{Payload: probe("outside"), Link: linkIndex(t, "lo")}
	if d := <-got; string(d.Payload) != string(probe("outside")) {
		t.Errorf("got %q, want what came from outside", d.Payload)
	}
}

// BenchmarkTraffic reads a device of 100 peers, as often as ten times a second in a mesh.
func BenchmarkTraffic(b *testing.B) {
	const peers = 100
	u := &userspace{dev: device.NewDevice(tuntest.NewChannelTUN().TUN(), &bind{}, deviceLogger(slog.New(slog.DiscardHandler)))}
	defer u.dev.Close()
	var cfg strings.Builder
	for i := range peers {
		fmt.Fprintf(&cfg, "public_key=%064x\nendpoint=192.0.2.%d:51820\nallowed_ip=10.4.0.%d/32\nallowed_ip=10.42.%d.0/24\n", i+1, i, i, i)
	}
	if err := u.dev.IpcSet(cfg.String()); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if got, err := u.traffic(); err != nil || len(got) != peers {
			b.Fatalf("got %d peers, %v, want %d", len(got), err, peers)
		}
	}
}

func TestParseTraffic(t *testing.T) {
	key := wgtypes.Key(netcfgtest.Key(8))
	peer := fmt.Sprintf("private_key=%x\npublic_key=%x\n", key[:], key[:])
	got, err := parseTraffic(peer + "endpoint=[::ffff:192.0.2.1]:7\ntx_bytes=18446744073709551615\nrx_bytes=2\nallowed_ip=::/0\n" +
		strings.Replace(peer, fmt.Sprintf("%x", key[:]), strings.Repeat("00", 32), 2))
	want := map[wgtypes.Key]path.Traffic{
		key: {Sent: math.MaxUint64, Received: 2, Endpoint: netip.MustParseAddrPort("192.0.2.1:7")},
		{}:  {},
	}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	for _, text := range []string{"public_key=zz\n", "public_key=00\n", peer + "endpoint=here\n", peer + "tx_bytes=-1\n", peer + "rx_bytes=\n"} {
		if _, err := parseTraffic(text); err == nil {
			t.Errorf("%q: got no error", text)
		}
	}
}
