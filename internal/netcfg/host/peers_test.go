// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/netcfg/netcfgtest"
)

// TestReadKernelDevice compares what is read of a device with what wgctrl reads of it. One peer has more
// allowed IPs than fit into one message.
func TestReadKernelDevice(t *testing.T) {
	if !namespaced(t) {
		return
	}
	if !kernelHasWireGuard(t) {
		if _, err := readKernelDevice(&netcfg.Device{Name: "wg0"}); err == nil || !strings.Contains(err.Error(), "find WireGuard in the kernel") {
			t.Errorf("got %v, want an error that says what is missing", err)
		}
		return
	}
	h, want := newKernel(t), alone()
	want.Device.Mark, want.Peers = 7, nil
	for i := range 200 {
		p := netcfg.Peer{Key: netcfgtest.Key(byte(i + 20)).PublicKey(), Keepalive: time.Duration(i%3) * time.Second}
		switch i % 3 {
		case 1:
			p.Endpoint = netip.MustParseAddrPort(fmt.Sprintf("192.0.2.%d:51820", i))
		case 2:
			p.Endpoint = netip.MustParseAddrPort(fmt.Sprintf("[2001:db8::%d]:51821", i))
		}
		p.AllowedIPs = netcfgtest.Prefixes(fmt.Sprintf("10.4.0.%d/32", i), fmt.Sprintf("fd00:42:%d::/64", i))
		p.PresharedKey[0] = byte(i)
		want.Peers = append(want.Peers, p)
	}
	for i := range 2000 {
		want.Peers[0].AllowedIPs = append(want.Peers[0].AllowedIPs, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 99, byte(i >> 8), byte(i)}), 32))
	}
	want.Peers = sortPeers(want.Peers)
	plan := netcfg.Diff(netcfg.State{}, netcfg.State{Device: want.Device, Peers: want.Peers}, netcfg.Options{})
	if err := h.Apply(t.Context(), plan); err != nil {
		t.Fatal(err)
	}
	by, err := wireguardDevice(want.Device.Name)
	if err != nil {
		t.Fatal(err)
	}
	var peers []netcfg.Peer
	for _, p := range by.Peers {
		peers = append(peers, toPeer(p))
	}
	dev := netcfg.Device{Name: want.Device.Name}
	got, err := readKernelDevice(&dev)
	if err != nil {
		t.Fatal(err)
	}
	if dev.PublicKey != by.PublicKey || dev.ListenPort != by.ListenPort || dev.Mark != uint32(by.FirewallMark) || dev.Mark != 7 {
		t.Errorf("got key %s, port %d, mark %d, want %s, %d, %d", dev.PublicKey, dev.ListenPort, dev.Mark, by.PublicKey, by.ListenPort, by.FirewallMark)
	}
	if diff := cmp.Diff(sortPeers(peers), sortPeers(got), cmpopts.EquateComparable(netip.AddrPort{}, netip.Prefix{})); diff != "" {
		t.Errorf("peers (-wgctrl +got):\n%s", diff)
	}
	if len(got) != 200 {
		t.Errorf("got %d peers, want 200", len(got))
	}
}

// FuzzDecodeDevice decodes any bytes. What has no end, or ends early, is an error and never a peer with half of
// its allowed IPs.
func FuzzDecodeDevice(f *testing.F) {
	whole, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.WGDEVICE_A_LISTEN_PORT, Data: []byte{1, 2}},
		{Type: unix.WGDEVICE_A_PEERS | unix.NLA_F_NESTED, Data: nested(f, 0, nested(f, unix.WGPEER_A_ALLOWEDIPS, nested(f, 0,
			nested(f, unix.WGALLOWEDIP_A_IPADDR, []byte{10, 4, 0, 2}), nested(f, unix.WGALLOWEDIP_A_CIDR_MASK, []byte{32}))))},
	})
	if err != nil {
		f.Fatal(err)
	}
	for n := range len(whole) + 1 {
		f.Add(whole[:n])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var dev netcfg.Device
		peers, err := decodeDevice(data, &dev, nil)
		if err != nil && peers != nil {
			t.Errorf("got %v and peers", err)
		}
		for _, p := range peers {
			for _, ip := range p.AllowedIPs {
				if !ip.IsValid() {
					t.Errorf("allowed IP %v", ip)
				}
			}
		}
	})
}

// nested makes an attribute of others, one after the other.
func nested(f *testing.F, kind uint16, values ...[]byte) []byte {
	f.Helper()
	var all []byte
	for _, v := range values {
		all = append(all, v...)
	}
	out, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: kind, Data: all}})
	if err != nil {
		f.Fatal(err)
	}
	return out
}
