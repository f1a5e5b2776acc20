// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/meshd/meshd/internal/mesh"
	"pgregory.net/rapid"
)

var comparePrefixes = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func TestAddressesOfSlots(t *testing.T) {
	dual := mesh.Cluster{
		Overlay: prefixes("10.4.0.0/16", "fd04::/64"), Pods: prefixes("10.42.0.0/16", "fd42::/48"), PodPrefix: []int{24, 64},
	}
	tests := []struct {
		name    string
		cluster mesh.Cluster
		slots   int
		slot    int
		overlay string
		pods    string
	}{
		{"first", dual, 256, 0, "[10.4.0.1 fd04::1]", "[10.42.0.0/24 fd42::/64]"},
		{"second", dual, 256, 1, "[10.4.0.2 fd04::2]", "[10.42.1.0/24 fd42:0:0:1::/64]"},
		{"last", dual, 256, 255, "[10.4.1.0 fd04::100]", "[10.42.255.0/24 fd42:0:0:ff::/64]"},
		{"lower half of a small overlay", mesh.Cluster{Overlay: prefixes("10.4.0.0/28"), Pods: prefixes("10.42.0.0/16"), PodPrefix: []int{24}}, 7, 6, "[10.4.0.7]", "[10.42.6.0/24]"},
		{"wide IPv6", mesh.Cluster{Overlay: prefixes("fd04::/16"), Pods: prefixes("fd42::/32"), PodPrefix: []int{64}}, mesh.MaxSlots, 0x1234, "[fd04::1235]", "[fd42:0:0:1234::/64]"},
		{"pods across 64 bits", mesh.Cluster{Overlay: prefixes("fd04::/64"), Pods: prefixes("fd42::/56"), PodPrefix: []int{72}}, 1 << 16, 0x1ff, "[fd04::200]", "[fd42:0:0:1:ff00::/72]"},
		{"one pod CIDR for all", mesh.Cluster{Overlay: prefixes("10.4.0.0/16"), Pods: prefixes("10.42.0.0/16"), PodPrefix: []int{16}}, 1, 0, "[10.4.0.1]", "[10.42.0.0/16]"},
		{"overlay of one address", mesh.Cluster{Overlay: prefixes("10.4.0.1/32"), Pods: prefixes("10.42.0.0/16"), PodPrefix: []int{24}}, 0, 0, "[10.4.0.2]", "[10.42.0.0/24]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.cluster.Slots(); got != tt.slots {
				t.Errorf("slots: got %d, want %d", got, tt.slots)
			}
			if got := fmt.Sprint(tt.cluster.Overlays(tt.slot)); got != tt.overlay {
				t.Errorf("overlay addresses of slot %d: got %s, want %s", tt.slot, got, tt.overlay)
			}
			if got := fmt.Sprint(tt.cluster.PodCIDRs(tt.slot)); got != tt.pods {
				t.Errorf("pod CIDRs of slot %d: got %s, want %s", tt.slot, got, tt.pods)
			}
		})
	}
}

func TestSlotOf(t *testing.T) {
	c := cluster(false)
	rapid.Check(t, func(t *rapid.T) {
		slot := rapid.IntRange(0, c.Slots()-1).Draw(t, "slot")
		for _, p := range c.PodCIDRs(slot) {
			if got, ok := c.SlotOf(p); !ok || got != slot {
				t.Fatalf("slot of %v: got %d, %v, want %d", p, got, ok, slot)
			}
		}
	})
	for _, s := range []string{"10.42.0.0/24", "10.128.0.0/25", "10.128.0.1/24", "fd42::/63"} {
		if got, ok := c.SlotOf(netip.MustParsePrefix(s)); ok {
			t.Errorf("slot of %s: got %d, want none", s, got)
		}
	}
}

// Two slots never share an address, whatever the ranges.
func TestSlotsAreDisjoint(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bits := rapid.IntRange(4, 20).Draw(t, "bits of the pod range")
		c := mesh.Cluster{
			Overlay: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr("172.16.0.0"), rapid.IntRange(12, 30).Draw(t, "overlay bits"))},
			Pods:    []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), bits).Masked()}, PodPrefix: []int{rapid.IntRange(bits, 28).Draw(t, "pod prefix")},
		}
		n := c.Slots()
		if n < 2 {
			return
		}
		i := rapid.IntRange(0, n-1).Draw(t, "i")
		j := rapid.IntRange(0, n-1).Filter(func(j int) bool { return j != i }).Draw(t, "j")
		if a, b := c.PodCIDRs(i)[0], c.PodCIDRs(j)[0]; a.Overlaps(b) || !c.Pods[0].Contains(a.Addr()) {
			t.Fatalf("pod CIDRs of slots %d and %d: %v and %v", i, j, a, b)
		}
		half := netip.PrefixFrom(c.Overlay[0].Addr(), c.Overlay[0].Bits()+1)
		if a, b := c.Overlays(i)[0], c.Overlays(j)[0]; a == b || !half.Contains(a) {
			t.Fatalf("overlay addresses of slots %d and %d: %v and %v, lower half %v", i, j, a, b, half)
		}
	})
}
