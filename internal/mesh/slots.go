// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/big"
	"math/bits"
	"net/netip"
	"slices"
)

// MaxSlots is the limit of every cluster, whatever its ranges: a WireGuard device has at
// most 2^20 peers (MAX_PEERS_PER_DEVICE in the kernel's drivers/net/wireguard).
const MaxSlots = 1 << 20

// Slots returns how many slots the cluster has: the lower half of the overlay range (the
// upper half is for clients), the number of pod subnets, or MaxSlots, whichever is least.
func (c Cluster) Slots() int {
	n := MaxSlots
	for _, p := range c.Overlay {
		// Slot i has address i+1, so the half's first address is not a slot's.
		if host := p.Addr().BitLen() - p.Bits(); host < 22 {
			n = min(n, 1<<max(host-1, 0)-1)
		}
	}
	for i, p := range c.Pods {
		if width := c.PodPrefix[i] - p.Bits(); width < 21 {
			n = min(n, 1<<max(width, 0))
		}
	}
	return max(n, 0)
}

// Overlays returns a slot's overlay addresses, one for each overlay range.
func (c Cluster) Overlays(slot int) []netip.Addr {
	addrs := make([]netip.Addr, 0, len(c.Overlay))
	for _, p := range c.Overlay {
		addrs = append(addrs, overlayAt(p, slot))
	}
	return addrs
}

// overlayAt returns a slot's address in one overlay range.
func overlayAt(p netip.Prefix, slot int) netip.Addr { return addToAddr(p.Addr(), slot+1, 0) }

// podCIDRAt returns a slot's pod CIDR of the given length in one pod range.
func podCIDRAt(p netip.Prefix, bits, slot int) netip.Prefix {
	return netip.PrefixFrom(addToAddr(p.Addr(), slot, p.Addr().BitLen()-bits), bits)
}

// PodCIDRs returns a slot's pod CIDRs, one for each pod range.
func (c Cluster) PodCIDRs(slot int) []netip.Prefix {
	cidrs := make([]netip.Prefix, 0, len(c.Pods))
	for i, p := range c.Pods {
		cidrs = append(cidrs, podCIDRAt(p, c.PodPrefix[i], slot))
	}
	return cidrs
}

// SlotOf returns the slot to which a pod CIDR belongs; ok is false if there is none.
func (c Cluster) SlotOf(pod netip.Prefix) (slot int, ok bool) {
	for i, p := range c.Pods {
		if pod.Bits() != c.PodPrefix[i] || !p.Contains(pod.Addr()) || pod != pod.Masked() {
			continue
		}
		base := new(big.Int).SetBytes(p.Masked().Addr().AsSlice())
		n := new(big.Int).SetBytes(pod.Addr().AsSlice())
		n.Sub(n, base).Rsh(n, uint(pod.Addr().BitLen()-pod.Bits()))
		if n.IsInt64() && n.Int64() < int64(c.Slots()) {
			return int(n.Int64()), true
		}
	}
	return None, false
}

// Hash hashes the settings that determine addresses. Nodes with different hashes can't be
// in one mesh.
func (c Cluster) Hash() uint64 {
	sum := sha256.Sum256(fmt.Append(nil, c.Overlay, c.Pods, c.PodPrefix))
	return binary.BigEndian.Uint64(sum[:])
}

// guarded returns the ranges in which only the mesh assigns addresses.
func (c Cluster) guarded() []netip.Prefix {
	ps := slices.Concat(c.Overlay, c.Pods)
	slices.SortFunc(ps, ComparePrefix)
	return ps
}

// podAndClientRanges returns the address ranges of pods and clients.
func (c Cluster) podAndClientRanges() []netip.Prefix {
	return mergePrefixes(slices.Concat(c.Pods, c.clientRanges()))
}

// podRanges returns the pod ranges with the length of a node's pod CIDR.
func (c Cluster) podRanges() []PodRange {
	var out []PodRange
	for i, p := range c.Pods {
		out = append(out, PodRange{Range: p, Bits: c.PodPrefix[i]})
	}
	slices.SortFunc(out, func(a, b PodRange) int { return ComparePrefix(a.Range, b.Range) })
	return out
}

// Families returns which address families the cluster uses.
func (c Cluster) Families() (v4, v6 bool) {
	for _, p := range c.guarded() {
		v4 = v4 || p.Addr().Is4()
		v6 = v6 || p.Addr().Is6()
	}
	return v4, v6
}

// ComparePrefix orders prefixes by address, then by length.
func ComparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// addToAddr returns a + n<<shift, for an n below 2^32; it wraps around.
func addToAddr(a netip.Addr, n, shift int) netip.Addr {
	if a.Is4() {
		b := a.As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(n)<<shift)
		return netip.AddrFrom4(b)
	}
	b := a.As16()
	hi, lo := binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
	addLo, addHi := uint64(n)<<shift, uint64(n)>>max(0, 64-shift)
	if shift >= 64 {
		addLo, addHi = 0, uint64(n)<<(shift-64)
	}
	lo, carry := bits.Add64(lo, addLo, 0)
	hi, _ = bits.Add64(hi, addHi, carry)
	binary.BigEndian.PutUint64(b[:8], hi)
	binary.BigEndian.PutUint64(b[8:], lo)
	return netip.AddrFrom16(b)
}
