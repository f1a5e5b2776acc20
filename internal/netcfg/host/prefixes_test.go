// SPDX-License-Identifier: Apache-2.0

package host

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/nftables"
	"pgregory.net/rapid"
)

func TestPrefixes(t *testing.T) {
	tests := []struct {
		name     string
		elements []nftables.SetElement
		want     []string
	}{
		{name: "none"},
		{
			name: "first mark of the kernel, and no order",
			elements: []nftables.SetElement{
				{Key: []byte{10, 5, 0, 0}, IntervalEnd: true}, {Key: []byte{10, 4, 0, 0}}, {Key: []byte{0, 0, 0, 0}, IntervalEnd: true},
			},
			want: []string{"10.4.0.0/16"},
		},
		{
			name:     "adjacent, end given",
			elements: []nftables.SetElement{{Key: []byte{10, 4, 0, 0}}, {Key: []byte{10, 5, 0, 0}, IntervalEnd: true}, {Key: []byte{10, 5, 0, 0}}, {Key: []byte{10, 6, 0, 0}, IntervalEnd: true}},
			want:     []string{"10.4.0.0/16", "10.5.0.0/16"},
		},
		{name: "everything", elements: []nftables.SetElement{{Key: []byte{0, 0, 0, 0}}}, want: []string{"0.0.0.0/0"}},
		{name: "no prefix", elements: []nftables.SetElement{{Key: []byte{10, 0, 0, 1}}, {Key: []byte{10, 0, 0, 4}, IntervalEnd: true}}, want: []string{"10.0.0.1/32", "10.0.0.2/31"}},
		{name: "up to the end", elements: []nftables.SetElement{{Key: []byte{255, 255, 255, 254}}}, want: []string{"255.255.255.254/31"}},
		{name: "no address", elements: []nftables.SetElement{{Key: []byte{1, 2}}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, p := range prefixes(tt.elements) {
				got = append(got, p.String())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("prefixes (-want +got):\n%s", diff)
			}
		})
	}
}

// TestPrefixesLaw checks a law: decoding the elements that the kernel has for disjoint prefixes
// returns these prefixes.
func TestPrefixesLaw(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.SampledFrom([]int{4, 16}).Draw(t, "size")
		want := disjoint(t, size, 8)
		got := prefixes(elements(want))
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
			t.Fatalf("prefixes (-want +got):\n%s", diff)
		}
	})
}

// disjoint draws at most so many sorted prefixes of addresses of size bytes. Many are next to each other.
func disjoint(t *rapid.T, size, most int) []netip.Prefix {
	var all []netip.Prefix
	for range rapid.IntRange(0, most).Draw(t, "count") {
		addr, _ := netip.AddrFromSlice(rapid.SliceOfN(rapid.Byte(), size, size).Draw(t, "addr"))
		p := netip.PrefixFrom(addr, rapid.IntRange(0, 8*size).Draw(t, "bits")).Masked()
		all = append(all, p)
		if next := after(p); next.IsValid() {
			all = append(all, netip.PrefixFrom(next, p.Bits()))
		}
	}
	slices.SortFunc(all, netip.Prefix.Compare) // a range before those that it contains
	var out []netip.Prefix
	for _, p := range all {
		if len(out) == 0 || !out[len(out)-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}

// FuzzPrefixes checks that decoding any elements ends, and returns masked prefixes.
func FuzzPrefixes(f *testing.F) {
	f.Add([]byte{10, 4, 0, 0, 10, 5, 0, 0}, uint8(2), false)
	f.Add([]byte{0}, uint8(0), true)
	f.Fuzz(func(t *testing.T, b []byte, ends uint8, six bool) {
		size := 4
		if six {
			size = 16
		}
		var elements []nftables.SetElement
		for i := 0; len(b) > 0 && i < 8; i++ {
			n := min(size, len(b))
			elements = append(elements, nftables.SetElement{Key: b[:n], IntervalEnd: ends>>i&1 == 1})
			b = b[n:]
		}
		for _, p := range prefixes(elements) {
			if p != p.Masked() {
				t.Errorf("got %s, want it masked", p)
			}
		}
	})
}
