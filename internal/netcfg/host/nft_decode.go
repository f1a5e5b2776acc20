// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/netcfg/filter"
)

// decoder decodes the rules of an nftables table.
type decoder struct {
	sets  map[string][]nftables.SetElement // the elements of the table's sets, by name
	links map[uint32]string                // names of the host's links, by index
}

// decode decodes a rule of nftables. A rule with a verdict map becomes one rule for each
// element of the map, so the result may have several.
//
// In the kernel a rule is a small program that uses registers: it loads a field of the
// packet into a register, may change it, and compares it. nft and iptables-nft compare
// what they have just loaded, so only the last load is remembered here.
func (d decoder) decode(exprs []expr.Any) []filter.Rule {
	var r filter.Rule
	var l load
	var to translation
	for _, e := range exprs {
		switch e := e.(type) {
		case *expr.Meta:
			l = d.loadMeta(e.Key)
		case *expr.Ct:
			l = load{}
			if e.Key == expr.CtKeySTATE {
				l.field = filter.State
			}
		case *expr.Payload:
			l = loadPayload(e)
		case *expr.Bitwise:
			l.mask = e.Mask
		case *expr.Cmp:
			r.Conditions = append(r.Conditions, l.compare(e)...)
		case *expr.Range:
			r.Conditions = append(r.Conditions, l.between(e))
		case *expr.Lookup:
			if e.IsDestRegSet {
				return l.verdicts(r, d.sets[e.SetName])
			}
			r.Conditions = append(r.Conditions, l.lookUp(e, d.sets[e.SetName]))
		case *expr.Verdict:
			r.Action, r.Chain = verdict(e)
		case *expr.Reject:
			r.Action = filter.Drop
		case *expr.Immediate:
			to.set(e.Data)
		case *expr.NAT:
			if e.Type == expr.NATTypeDestNAT {
				r.Action, r.To = filter.Translate, to.String()
			}
		case *expr.Redir:
			r.Action, r.To = filter.Translate, to.String()
		case *expr.Target:
			switch e.Name {
			case "REJECT":
				r.Action = filter.Drop
			case "DNAT", "REDIRECT":
				r.Action, r.To = filter.Translate, xtDestination(e.Info)
			}
		case *expr.Counter, *expr.Log:
		case *expr.Match:
			if text, ok := comment(e); ok {
				r.Comment = text
				continue
			}
			r.Conditions = append(r.Conditions, extension(e))
		default:
			l = load{}
			r.Conditions = append(r.Conditions, filter.Condition{Field: filter.Unknown})
		}
	}
	return []filter.Rule{r}
}

// comment returns the comment that iptables stores in a rule, up to its first zero.
func comment(m *expr.Match) (string, bool) {
	if m.Name != "comment" {
		return "", false
	}
	info, ok := m.Info.(*xt.Comment)
	if !ok {
		return "", true
	}
	text, _, _ := strings.Cut(string(*info), "\x00")
	return text, true
}

// extension decodes those extensions of iptables that firewalls commonly use:
// xt_conntrack.h, xt_addrtype.h and xt_multiport.h. A match that also tests anything else
// is unknown.
func extension(m *expr.Match) filter.Condition {
	switch info := m.Info.(type) {
	case *xt.Unknown:
		if m.Name == "multiport" && m.Rev == 1 {
			return multiport(*info)
		}
	case *xt.ConntrackMtinfo3:
		const plain = uint16(xt.ConntrackState | xt.ConntrackStateAlias)
		if info.MatchFlags&^plain == 0 {
			return filter.Condition{Field: filter.State, Not: info.InvertFlags&uint16(xt.ConntrackState) != 0, Values: xtStates(info.StateMask)}
		}
	case *xt.AddrTypeV1:
		if info.Source == 0 && info.Flags&^addrTypeInvertDest == 0 {
			return filter.Condition{Field: filter.Type, Not: info.Flags&addrTypeInvertDest != 0, Values: addrTypes(info.Dest)}
		}
	}
	return filter.Condition{Field: filter.Unknown}
}

// translation holds the values that an nft rule has written into registers last. NAT uses
// an address, a port, or both.
type translation struct {
	addr netip.Addr
	port uint16
}

func (d *translation) set(data []byte) {
	if len(data) == 2 {
		d.port = binary.BigEndian.Uint16(data)
	} else if a, ok := netip.AddrFromSlice(data); ok {
		d.addr = a
	}
}

// String formats address and port as iptables does, leaving out what is missing.
func (d translation) String() string {
	switch {
	case d.addr.IsValid() && d.port != 0:
		return netip.AddrPortFrom(d.addr, d.port).String()
	case d.addr.IsValid():
		return d.addr.String()
	case d.port != 0:
		return strconv.Itoa(int(d.port))
	}
	return ""
}

// xtDestination returns the new destination of iptables' own DNAT.
func xtDestination(info xt.InfoAny) string {
	var d translation
	read := func(r xt.NatRange) {
		addr, _ := netip.AddrFromSlice(r.MinIP)
		d = translation{addr.Unmap(), r.MinPort}
	}
	switch info := info.(type) {
	case *xt.NatRange:
		read(*info)
	case *xt.NatRange2:
		read(info.NatRange)
	}
	return d.String()
}

// multiport decodes xt_multiport_v1 of xt_multiport.h: what is compared, the number of
// ports, 15 ports, a flag for each port that starts a range, and whether the match is
// negated.
func multiport(data []byte) filter.Condition {
	const most, size = 15, 2 + 2*15 + 15 + 1
	fields := []filter.Field{filter.SourcePort, filter.Port} // by the first byte
	if len(data) < size || int(data[0]) >= len(fields) || data[1] > most {
		return filter.Condition{Field: filter.Unknown}
	}
	c := filter.Condition{Field: fields[data[0]], Not: data[size-1] != 0}
	first := ""
	for i := range int(data[1]) {
		port := strconv.Itoa(int(binary.NativeEndian.Uint16(data[2+2*i:])))
		if data[2+2*most+i] != 0 {
			first = port + "-"
			continue
		}
		c.Values = append(c.Values, first+port)
		first = ""
	}
	return c
}

// addrTypeInvertDest is XT_ADDRTYPE_INVERT_DEST.
const addrTypeInvertDest = 2

// xtStates returns the names of the states in a mask of xt_conntrack
// (XT_CONNTRACK_STATE_BIT and the bits defined with it).
func xtStates(mask uint16) []string {
	return bits16(mask, []string{"invalid", "established", "related", "new", "", "", "snat", "dnat", "untracked"})
}

// addrTypes returns the names of the types in a mask of xt_addrtype.
func addrTypes(mask uint16) []string {
	return bits16(mask, []string{"unspec", "unicast", "local", "broadcast", "anycast", "multicast"})
}

// bits16 returns the names of the bits that are set in a mask.
func bits16(mask uint16, names []string) []string {
	var out []string
	for i, name := range names {
		if mask&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	return out
}

func verdict(v *expr.Verdict) (filter.Action, string) {
	switch v.Kind {
	case expr.VerdictAccept:
		return filter.Accept, ""
	case expr.VerdictDrop:
		return filter.Drop, ""
	case expr.VerdictReturn:
		return filter.Return, ""
	case expr.VerdictJump:
		return filter.Jump, v.Chain
	case expr.VerdictGoto:
		return filter.Goto, v.Chain
	}
	return filter.None, ""
}

// elementVerdict decodes the verdict of a map's element. The library encodes such
// verdicts but doesn't decode them: it returns the kernel's attributes (enum
// nft_verdict_attributes). A verdict that can't be decoded does nothing.
func elementVerdict(data []byte) (filter.Action, string) {
	attrs, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return filter.None, ""
	}
	attrs.ByteOrder = binary.BigEndian
	var v expr.Verdict
	for attrs.Next() {
		switch attrs.Type() {
		case unix.NFTA_VERDICT_CODE:
			v.Kind = expr.VerdictKind(attrs.Int32())
		case unix.NFTA_VERDICT_CHAIN:
			v.Chain = attrs.String()
		}
	}
	if attrs.Err() != nil {
		return filter.None, ""
	}
	return verdict(&v)
}

// load describes the contents of a register: a field of the packet, with only the bits of
// the mask.
type load struct {
	field filter.Field // "" if it is not understood
	mask  []byte
	size  int               // of an address of this family, in bytes
	links map[uint32]string // set if a link is compared by its index
}

func (d decoder) loadMeta(key expr.MetaKey) load {
	switch key {
	case expr.MetaKeyIIFNAME:
		return load{field: filter.In}
	case expr.MetaKeyOIFNAME:
		return load{field: filter.Out}
	case expr.MetaKeyIIF:
		return load{field: filter.In, links: d.links}
	case expr.MetaKeyOIF:
		return load{field: filter.Out, links: d.links}
	case expr.MetaKeyL4PROTO:
		return load{field: filter.Protocol}
	case expr.MetaKeyNFPROTO:
		return load{field: filter.Family}
	case expr.MetaKeyMARK:
		return load{field: filter.Mark}
	}
	return load{}
}

// loadPayload recognizes addresses and ports by their position in the
// headers. The positions of IPv4 and IPv6 addresses differ. nft loads only as many bytes
// of an address as it compares.
func loadPayload(e *expr.Payload) load {
	type place struct {
		base   expr.PayloadBase
		offset uint32
	}
	switch (place{e.Base, e.Offset}) {
	case place{expr.PayloadBaseTransportHeader, 0}:
		return load{field: filter.SourcePort}
	case place{expr.PayloadBaseTransportHeader, 2}:
		return load{field: filter.Port}
	case place{expr.PayloadBaseNetworkHeader, 12}:
		return load{field: filter.Source, size: 4}
	case place{expr.PayloadBaseNetworkHeader, 16}:
		return load{field: filter.Destination, size: 4}
	case place{expr.PayloadBaseNetworkHeader, 8}:
		return load{field: filter.Source, size: 16}
	case place{expr.PayloadBaseNetworkHeader, 24}:
		return load{field: filter.Destination, size: 16}
	}
	return load{}
}

// compare returns the condition of a comparison with one value. If a rule compares the
// source and the destination, nft compares both at once (payload_try_merge in payload.c).
func (l load) compare(e *expr.Cmp) []filter.Condition {
	if l.field == filter.State && l.mask != nil && e.Op == expr.CmpOpNeq {
		return []filter.Condition{{Field: filter.State, Values: states(l.mask)}} // (state & mask) != 0
	}
	if second, ok := destinations[l.field]; ok && l.mask == nil && e.Op == expr.CmpOpEq && len(e.Data) == 2*l.width() {
		first, last := *e, *e
		first.Data, last.Data = e.Data[:l.width()], e.Data[l.width():]
		return append(l.compare(&first), load{field: second, size: l.size}.compare(&last)...)
	}
	value, ok := l.value(e.Data)
	switch e.Op {
	case expr.CmpOpEq, expr.CmpOpNeq:
	case expr.CmpOpGte:
		value, ok = l.span(e.Data, bytes.Repeat([]byte{0xff}, l.width()))
	case expr.CmpOpLte:
		value, ok = l.span(make([]byte, l.width()), e.Data)
	default:
		ok = false
	}
	if !ok {
		return []filter.Condition{{Field: filter.Unknown}}
	}
	return []filter.Condition{{Field: l.field, Not: e.Op == expr.CmpOpNeq, Values: []string{value}}}
}

// destinations are the fields that follow others in the headers.
var destinations = map[filter.Field]filter.Field{filter.Source: filter.Destination, filter.SourcePort: filter.Port}

// width is the length of an address or port, in bytes; 0 for other fields.
func (l load) width() int {
	switch l.field {
	case filter.Source, filter.Destination:
		return l.size
	case filter.Port, filter.SourcePort:
		return 2
	}
	return 0
}

// span formats a range of addresses, of ports, or of the link names that begin alike.
func (l load) span(from, to []byte) (string, bool) {
	if l.links == nil && (l.field == filter.In || l.field == filter.Out) {
		start := bytes.TrimRight(from, "\x00")
		switch end := bytes.TrimRight(to, "\xff"); {
		case bytes.Equal(from, to):
			return linkPattern(from), true
		case bytes.Equal(start, end):
			return string(start) + "*", true
		}
		return "", false
	}
	if w := l.width(); w == 0 || l.mask != nil || len(from) != w || len(to) != w {
		return "", false
	}
	first, ok1 := l.value(from)
	last, ok2 := l.value(to)
	if l.size != 0 { // a value is a prefix
		first, _, _ = strings.Cut(first, "/")
		last, _, _ = strings.Cut(last, "/")
	}
	return first + "-" + last, ok1 && ok2
}

// between returns the condition of a comparison with a range. Only ranges of addresses and
// ports are understood.
func (l load) between(e *expr.Range) filter.Condition {
	value, ok := l.span(e.FromData, e.ToData)
	if !ok {
		return filter.Condition{Field: filter.Unknown}
	}
	return filter.Condition{Field: l.field, Not: e.Op == expr.CmpOpNeq, Values: []string{value}}
}

// lookUp returns the condition of a lookup in a set.
func (l load) lookUp(e *expr.Lookup, elements []nftables.SetElement) filter.Condition {
	c := filter.Condition{Field: l.field, Not: e.Invert}
	for _, m := range l.members(elements) {
		if !m.ok {
			return filter.Condition{Field: filter.Unknown}
		}
		c.Values = append(c.Values, m.value)
	}
	if len(c.Values) == 0 {
		return filter.Condition{Field: filter.Unknown}
	}
	return c
}

// verdicts returns the rules for the elements of a verdict map.
func (l load) verdicts(r filter.Rule, elements []nftables.SetElement) []filter.Rule {
	var rules []filter.Rule
	for _, m := range l.members(elements) {
		c := filter.Condition{Field: filter.Unknown}
		if m.ok {
			c = filter.Condition{Field: l.field, Values: []string{m.value}}
		}
		one := filter.Rule{Conditions: append(append([]filter.Condition{}, r.Conditions...), c)}
		one.Action, one.Chain = elementVerdict(m.element.Val)
		rules = append(rules, one)
	}
	return rules
}

// member is an element of a set or map: a value, or an interval.
type member struct {
	element nftables.SetElement
	value   string
	ok      bool // the value is understood
}

// members returns the elements of a set. The kernel lists an interval as two elements: its
// first value, and the one behind its last, which is marked as an end. The highest interval
// may have no end, and there may be an end before the first interval (nft_set_rbtree.c).
func (l load) members(elements []nftables.SetElement) []member {
	isEnd := func(e nftables.SetElement) bool { return e.IntervalEnd }
	if !slices.ContainsFunc(elements, isEnd) {
		var out []member
		for _, e := range elements {
			value, ok := l.value(e.Key)
			out = append(out, member{e, value, ok && len(e.KeyEnd) == 0})
		}
		return out
	}
	sorted := slices.Clone(elements)
	slices.SortStableFunc(sorted, func(a, b nftables.SetElement) int {
		switch c := bytes.Compare(a.Key, b.Key); {
		case c != 0 || a.IntervalEnd == b.IntervalEnd:
			return c
		case a.IntervalEnd:
			return -1
		}
		return 1
	})
	var out []member
	for i, e := range sorted {
		if e.IntervalEnd {
			continue
		}
		last := bytes.Repeat([]byte{0xff}, len(e.Key))
		if i+1 < len(sorted) {
			last = before(sorted[i+1].Key)
		}
		value, ok := l.span(e.Key, last)
		out = append(out, member{e, value, ok})
	}
	return out
}

// before returns the number before a number of several bytes, the highest byte first.
func before(number []byte) []byte {
	out := slices.Clone(number)
	for i := range slices.Backward(out) {
		out[i]--
		if out[i] != 0xff {
			break
		}
	}
	return out
}

// value formats the bytes that a field is compared with in the form that a condition
// uses.
func (l load) value(data []byte) (value string, ok bool) {
	switch {
	case l.links != nil && len(data) == 4:
		value, ok = l.links[binary.NativeEndian.Uint32(data)]
	case l.links != nil:
	case l.field == filter.In || l.field == filter.Out:
		return linkPattern(data), true
	case l.field == filter.Family && len(data) == 1:
		value, ok = families[data[0]]
	case l.field == filter.Protocol && len(data) == 1:
		if value, ok = protocols[data[0]]; !ok {
			value, ok = strconv.Itoa(int(data[0])), true
		}
	case (l.field == filter.Port || l.field == filter.SourcePort) && len(data) == 2:
		value, ok = strconv.Itoa(int(binary.BigEndian.Uint16(data))), true
	case l.field == filter.Source || l.field == filter.Destination:
		return l.prefix(data)
	case l.field == filter.Mark && len(data) == 4:
		value, ok = strconv.Itoa(int(binary.NativeEndian.Uint32(data))), true
	case l.field == filter.State:
		if s := states(data); len(s) == 1 {
			value, ok = s[0], true
		}
	}
	return value, ok
}

// linkPattern returns the pattern for a link name. A name that is shorter than IFNAMSIZ
// and has no terminating zero matches as a prefix.
func linkPattern(data []byte) string {
	name, _, whole := bytes.Cut(data, []byte{0})
	if !whole && len(data) < unix.IFNAMSIZ {
		return string(name) + "*"
	}
	return string(name)
}

var (
	families  = map[byte]string{unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6"}
	protocols = map[byte]string{unix.IPPROTO_ICMP: "icmp", unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_ICMPV6: "ipv6-icmp"}
)

// prefix decodes an address. Trailing bytes that are not compared may be missing.
func (l load) prefix(data []byte) (string, bool) {
	length := 8 * len(data)
	if l.mask != nil {
		length = 0
		for _, b := range l.mask {
			length += bits.OnesCount8(b)
		}
	}
	whole := make([]byte, l.size)
	if copy(whole, data) < len(data) {
		return "", false
	}
	addr, _ := netip.AddrFromSlice(whole)
	p, err := addr.Prefix(length)
	return p.String(), err == nil && p.Addr() == addr
}

// states returns the names of conntrack's states in a mask. The mask has the byte order
// of the host.
func states(mask []byte) []string {
	if len(mask) != 4 {
		return nil
	}
	var names []string
	for _, s := range []struct {
		bit  uint32
		name string
	}{
		{expr.CtStateBitINVALID, "invalid"},
		{expr.CtStateBitESTABLISHED, "established"},
		{expr.CtStateBitRELATED, "related"},
		{expr.CtStateBitNEW, "new"},
		{expr.CtStateBitUNTRACKED, "untracked"},
	} {
		if binary.NativeEndian.Uint32(mask)&s.bit != 0 {
			names = append(names, s.name)
		}
	}
	return names
}
