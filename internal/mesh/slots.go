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
	return MergePrefixes(slices.Concat(c.Pods, c.clientRanges()))
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
	addLo, addHi := uint64(n)<<shift, uint64(n)>>(64-shift)
	if shift >= 64 {
		addLo, addHi = 0, uint64(n)<<(shift-64)
	}
	lo, carry := bits.Add64(lo, addLo, 0)
	hi, _ = bits.Add64(hi, addHi, carry)
	binary.BigEndian.PutUint64(b[:8], hi)
	binary.BigEndian.PutUint64(b[8:], lo)
	return netip.AddrFrom16(b)
}

// compareClaims orders records by precedence of their claims: the older claim first, then
// the lower ID. It is a total order, so all nodes that have the same records agree on
// every owner.
func compareClaims(a, b *node) int {
	if c := cmp.Compare(a.Claim.Time, b.Claim.Time); c != 0 {
		return c
	}
	return a.id.Compare(b.id)
}

// node is a record with its ID, which costs a hash.
type node struct {
	*Record
	id ID
}

// nodes returns the records sorted by ID. Of several records of one identity it keeps the
// one with the highest sequence.
func nodes(records []Record) []*node {
	slab := make([]node, len(records))
	ns := make([]*node, len(records))
	for i := range records {
		slab[i] = node{Record: &records[i], id: records[i].ID()}
		ns[i] = &slab[i]
	}
	slices.SortFunc(ns, func(a, b *node) int {
		return cmp.Or(a.id.Compare(b.id), cmp.Compare(b.Sequence, a.Sequence))
	})
	return slices.CompactFunc(ns, func(a, b *node) bool { return a.id == b.id })
}

// SlotOwners returns who owns each claimed slot: of all nodes that claim it, the one with the
// oldest claim, and of those the one with the lowest ID. It is a pure function of the
// records, so nodes with equal records agree on the owners, in whatever order the records
// came.
func SlotOwners(records []Record) map[int]ID {
	owners := make(map[int]ID)
	for slot, n := range claimOwners(nodes(records)) {
		owners[slot] = n.id
	}
	return owners
}

func claimOwners(ns []*node) map[int]*node {
	owners := make(map[int]*node, len(ns))
	for _, n := range ns {
		if n.Claim.Slot == None {
			continue
		}
		if o, ok := owners[n.Claim.Slot]; !ok || compareClaims(n, o) < 0 {
			owners[n.Claim.Slot] = n
		}
	}
	return owners
}

// ClaimInput is what a node knows when it chooses its own claim.
type ClaimInput struct {
	Cluster   Cluster
	Self      ID
	Name      string
	Records   []Record // of all nodes; the node's own one is ignored
	Current   Claim    // what this node has claimed; read from disk after a start
	Ready     bool     // it was READY with Current, so pods may use its addresses
	Forgotten bool     // Current was forgotten with the node, so its time starts again
	Static    int      // the slot that the configuration names, or None
	GiveUp    bool     // a person asked for a slot other than Current
	// Listened is true once the state of some member has been merged, or if there is no
	// other member. Until then a node claims nothing.
	Listened bool
	Now      int64 // milliseconds since 1970
}

// NextClaim returns the claim that a node should make. It returns s.Current wherever
// possible, with problems that say what conflicts with it.
//
// A claim that is lost before the node was ever READY moves to another slot. One that
// pods may use stays, because running pods are never renumbered automatically: the
// problem says what a person can do. Once the person gives the claim up, NextClaim
// returns another one, or None and the reason.
func NextClaim(s ClaimInput) (Claim, []Problem) {
	others := make([]*node, 0, len(s.Records))
	for _, n := range nodes(s.Records) {
		if n.id != s.Self {
			others = append(others, n)
		}
	}
	taken := claimOwners(others)
	if s.Forgotten {
		// A node that claimed the slot in the meantime has the older claim.
		s.Current.Time = s.Now
	}
	self := &node{Record: &Record{Claim: s.Current}, id: s.Self}

	switch {
	case s.Current.Slot == None:
	case s.GiveUp:
		// Take another one even if no other node claims this one.
		if _, ok := taken[s.Current.Slot]; !ok {
			taken[s.Current.Slot] = &node{Record: &Record{Name: s.Name}, id: s.Self}
		}
	default:
		owner, contested := taken[s.Current.Slot]
		fits := s.Current.Slot < s.Cluster.Slots()
		wanted := s.Static == None || s.Static == s.Current.Slot
		lost := contested && compareClaims(owner, self) < 0
		switch {
		case fits && wanted && !lost:
			return s.Current, nil
		case s.Ready:
			return s.Current, []Problem{s.currentClaimProblem(owner, lost, fits)}
		}
	}
	if !s.Listened {
		return Claim{Slot: None}, nil
	}
	if s.Static == None {
		return s.pickFreeSlot(others, taken)
	}
	if owner, ok := taken[s.Static]; ok {
		return Claim{Slot: None}, []Problem{s.staticSlotTaken(owner)}
	}
	return Claim{Slot: s.Static, Time: s.Now}, nil
}

// staticSlotTaken describes that the slot in the configuration is not free.
func (s ClaimInput) staticSlotTaken(owner *node) Problem {
	p := Problem{Kind: ProblemSlot, Node: s.Name}
	if owner.id == s.Self {
		p.Text = fmt.Sprintf("node.pod-cidr names slot %d (%s), which is the one to be given up", s.Static, FormatPrefixes(s.Cluster.PodCIDRs(s.Static)))
		p.Advice = "name another pod-cidr, or leave it out, and reload meshd"
		return p
	}
	p.Text = fmt.Sprintf("node.pod-cidr names slot %d (%s), which belongs to node %s", s.Static, FormatPrefixes(s.Cluster.PodCIDRs(s.Static)), owner.Name)
	p.Advice = fmt.Sprintf("name another pod-cidr, or leave it out, and restart meshd; if node %[1]s is gone for good, run: meshd forget %[1]s", owner.Name)
	return p
}

// pickFreeSlot chooses a free slot: the lowest one if no other node is without a slot,
// else one that depends on the node's identity, so that new nodes that have not heard of
// each other seldom choose the same.
func (s ClaimInput) pickFreeSlot(others []*node, taken map[int]*node) (Claim, []Problem) {
	_, collided := taken[s.Current.Slot]
	alone := !collided
	for _, n := range others {
		alone = alone && n.Claim.Slot != None
	}
	free := make([]int, 0, s.Cluster.Slots())
	for slot := range s.Cluster.Slots() {
		if _, ok := taken[slot]; !ok {
			free = append(free, slot)
			if alone {
				break
			}
		}
	}
	if len(free) == 0 {
		return Claim{Slot: None}, []Problem{{
			Kind: ProblemExhausted, Node: s.Name,
			Text:   fmt.Sprintf("all %d slots of the cluster are taken", s.Cluster.Slots()),
			Advice: "run meshd forget for nodes that are gone, or choose wider cluster.pods and cluster.overlay ranges",
		}}
	}
	return Claim{Slot: free[binary.BigEndian.Uint64(s.Self[:])%uint64(len(free))], Time: s.Now}, nil
}

// currentClaimProblem describes what conflicts with a claim that pods may use.
func (s ClaimInput) currentClaimProblem(owner *node, lost, fits bool) Problem {
	p := Problem{Kind: ProblemSlot, Node: s.Name}
	renumber := fmt.Sprintf("to give %[1]s and its pods other addresses, run on %[1]s: meshd renumber", s.Name)
	switch {
	case !fits:
		p.Text = fmt.Sprintf("slot %d does not fit into the cluster's ranges any more", s.Current.Slot)
		p.Advice = "set cluster.pods, cluster.pod-prefix and cluster.overlay back; or, " + renumber
	case lost:
		p.Text = fmt.Sprintf("slot %d (%s) belongs to node %s, whose claim is older: other nodes send that traffic there", s.Current.Slot, FormatPrefixes(s.Cluster.PodCIDRs(s.Current.Slot)), owner.Name)
		p.Advice = renumber
	default:
		p.Text = fmt.Sprintf("node.pod-cidr names slot %d, but the node runs with slot %d", s.Static, s.Current.Slot)
		p.Advice = fmt.Sprintf("set node.pod-cidr to [%s]; or, %s", FormatPrefixes(s.Cluster.PodCIDRs(s.Current.Slot)), renumber)
	}
	return p
}
