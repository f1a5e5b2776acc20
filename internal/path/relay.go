// SPDX-License-Identifier: Apache-2.0

package path

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/crypto/blake2s"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// How long a relay remembers, and how much. A node binds again every 25 s (renewEvery), and
// WireGuard makes a new session, with a new index, every two minutes at the latest.
const (
	boundFor = 3 * time.Minute
	rowFor   = 200 * time.Second
	maxBound = 1024 // nodes
	maxRows  = 4096 // of one node: two sessions with each of a thousand peers, and those before
	tokenFor = 30 * time.Second
	// leftFor is for how long packets may be under way from where a node was. Later ones show that it is
	// there again: a router has gone back to a port.
	leftFor = 3 * time.Second
	// Handshakes of one node: each costs a try of all keys, 0.2 ms at 200 nodes. A node
	// that starts begins one with each of its peers, and WireGuard repeats them every 5 s.
	handshakeRate  = 40 // a second
	handshakeBurst = 512
	// Strangers are asked who they are: each address once a second, and so many in that time.
	askEvery = time.Second
	maxAsked = 256
	// unknownEvery is how often a node is told that something is unknown.
	unknownEvery = time.Second
)

// MaxDatagram is the longest datagram that a relay forwards, in bytes: longer than what WireGuard
// sends on links of 1500 bytes, and than any packet of gossip.
const MaxDatagram = 2048

// WireGuard's messages, by their first byte, and the lengths of those of a handshake.
const (
	initiation    = 1
	initiationLen = 148
	response      = 2
	responseLen   = 92
	cookieReply   = 3
	cookieLen     = 64
	transport     = 4
	transportMin  = 32
)

// Token is what a relay sends to an address, and only who is there can repeat.
type Token [8]byte

// Verdict is what a relay does with a datagram.
type Verdict int

// The verdicts of Forward.
const (
	Drop   Verdict = iota // neither WireGuard's nor a probe
	Pass                  // on to the returned address
	AskWho                // its source is not bound: ask it to bind
	NoRow                 // its source is bound, but for whom it is is not known
	Absent                // its receiver is not bound
)

// binding is where a node is reached.
type binding struct {
	addr  netip.AddrPort
	left  netip.AddrPort // where it was before: packets are under way
	moved time.Time      // from there
	until time.Time
	key   wgtypes.Key
	mac1  [blake2s.Size]byte // key of mac1 in handshakes to the node
	rows  map[uint32]row     // by the index with which the node sends
	// allowed is how many more handshakes of the node may have their receiver found by its
	// key, or lead to a Begun, as of the time counted.
	allowed float64
	counted time.Time
	told    time.Time // when the node was told last that something is unknown
}

// row is for whom packets with an index are.
type row struct {
	to    Short
	until time.Time
}

// Relay forwards WireGuard's datagrams and sealed probes between nodes that are bound to it,
// unopened. It tells WireGuard's datagrams apart without a header of its own: those that begin a handshake
// by mac1, which is keyed with the receiver's public key, the others by the index in them,
// which the receiver has chosen and whose handshake has passed, or which its peer has told
// (a Row). It is not safe for concurrent use.
type Relay struct {
	secret [32]byte // of tokens
	bound  map[Short]*binding
	at     map[netip.AddrPort]Short // by where nodes are, and were before
	proved map[Short]netip.AddrPort // of nodes that need not be bound
	asked  map[netip.AddrPort]time.Time
	// changes counts what changes where packets of sessions go.
	changes uint64
}

// NewRelay returns a relay that has no node, see Restore. The secret is drawn anew at each start.
func NewRelay(secret [32]byte) *Relay {
	return &Relay{
		secret: secret, bound: map[Short]*binding{}, at: map[netip.AddrPort]Short{},
		asked: map[netip.AddrPort]time.Time{},
	}
}

// Changes returns a number that rises when a node is bound anew or no more, or a row has come or gone.
// It doesn't when something is only known for longer, or ends by itself.
func (r *Relay) Changes() uint64 { return r.changes }

// SetProved sets the addresses at which nodes are reached without being bound, as probes
// have shown. Probes to them are forwarded, so that they bind if somebody wants to reach
// them through this relay.
func (r *Relay) SetProved(at map[Short]netip.AddrPort) { r.proved = at }

// token is valid for one node at one address, for tokenFor to twice that time. The zero
// node's is for whoever is there, see Who.
func (r *Relay) token(node Short, at netip.AddrPort, period int64) Token {
	h := hmac.New(sha256.New, r.secret[:])
	h.Write(node[:])
	b, err := at.MarshalBinary()
	if err != nil {
		panic(err) // it returns none
	}
	h.Write(binary.BigEndian.AppendUint64(b, uint64(period)))
	return Token(h.Sum(nil)[:len(Token{})])
}

// Bind takes a Bind of a node, which an opened datagram has authenticated, and returns the answer. Key is
// the node's WireGuard key. A node is bound once it has repeated the token that was sent
// to the address from which it asks: else a forged source would draw others' traffic there.
func (r *Relay) Bind(now time.Time, node Short, key wgtypes.Key, m Message, from netip.AddrPort) Message {
	answer := Message{Op: Bound, Number: m.Number, Seen: from}
	b := r.bound[node]
	if b != nil && b.addr == from && r.at[from] == node { // proved before, and by nobody since
		b.until = now.Add(boundFor)
		return answer
	}
	period := now.UnixNano() / int64(tokenFor)
	valid := func(of Short) bool {
		return slices.ContainsFunc([]int64{period, period - 1}, func(period int64) bool {
			t := r.token(of, from, period)
			return subtle.ConstantTimeCompare(m.Token[:], t[:]) == 1
		})
	}
	if !valid(node) && !valid(Short{}) {
		answer.Token = r.token(node, from, period)
		return answer
	}
	r.prune(now)
	if b == nil && len(r.bound) >= maxBound {
		answer.Token = r.token(node, from, period) // it is not done
		return answer
	}
	r.bind(now, node, key, from).until = now.Add(boundFor)
	return answer
}

// bind notes where a node is.
func (r *Relay) bind(now time.Time, node Short, key wgtypes.Key, at netip.AddrPort) *binding {
	b := r.bound[node]
	if b == nil {
		b = &binding{rows: map[uint32]row{}, allowed: handshakeBurst, counted: now}
		r.bound[node] = b
	}
	if r.at[b.left] == node {
		delete(r.at, b.left)
	}
	r.changes++
	b.left, b.addr, b.moved = b.addr, at, now
	b.key, b.mac1 = key, blake2s.Sum256(append([]byte("mac1----"), key[:]...))
	r.at[at] = node
	return b
}

// prune forgets nodes that have not bound again, rows, and addresses where nobody is.
func (r *Relay) prune(now time.Time) {
	for id, b := range r.bound {
		if now.After(b.until) {
			delete(r.bound, id)
		}
	}
	for a, id := range r.at {
		if r.bound[id] == nil {
			delete(r.at, a)
		}
	}
}

// Who returns the question to an address from which something came that Forward answers
// with AskWho, of the given length. It returns false if the address was asked a short time
// ago, or too many others were: the source may be forged. For the same reason the question,
// once sealed, is never longer than what leads to it.
func (r *Relay) Who(now time.Time, length int, from netip.AddrPort) (Message, bool) {
	if last, ok := r.asked[from]; ok && now.Sub(last) < askEvery || length < sealedLen {
		return Message{}, false
	}
	if len(r.asked) >= maxAsked {
		maps.DeleteFunc(r.asked, func(_ netip.AddrPort, last time.Time) bool { return now.Sub(last) >= askEvery })
		if len(r.asked) >= maxAsked {
			return Message{}, false
		}
	}
	r.asked[from] = now
	return Message{Op: Who, Seen: from, Token: r.token(Short{}, from, now.UnixNano()/int64(tokenFor))}, true
}

// IsBound reports whether a node is bound.
func (r *Relay) IsBound(now time.Time, node Short) bool {
	b := r.bound[node]
	return b != nil && now.Before(b.until)
}

// SetKeys sets the WireGuard keys of the nodes that may use the relay. It forgets where other
// nodes are, and those that have another key now.
func (r *Relay) SetKeys(keys map[Short]wgtypes.Key) {
	maps.DeleteFunc(r.bound, func(node Short, b *binding) bool {
		key, ok := keys[node]
		gone := !ok || key != b.key
		if gone {
			r.changes++
		}
		return gone
	})
}

// Address returns where a node is, or was if it is not bound any more; the zero value for a
// node that is forgotten.
func (r *Relay) Address(node Short) netip.AddrPort {
	if b := r.bound[node]; b != nil {
		return b.addr
	}
	return netip.AddrPort{}
}

// At returns the node that is at an address, or was; the zero value for nobody.
func (r *Relay) At(a netip.AddrPort) Short { return r.at[a] }

// Learn takes a Row of a node: what it sends with an index is for another node.
func (r *Relay) Learn(now time.Time, from Short, index uint32, to Short) {
	b := r.bound[from]
	if b == nil {
		return
	}
	known, ok := b.rows[index]
	if !ok || known.to != to {
		r.changes++
	}
	if !ok && len(b.rows) >= maxRows {
		maps.DeleteFunc(b.rows, func(_ uint32, old row) bool { return now.After(old.until) })
		if len(b.rows) >= maxRows {
			b.dropRows()
		}
	}
	b.rows[index] = row{to, now.Add(rowFor)}
}

// dropRows forgets the older half of the rows for the node that has most: whoever begins
// sessions without end takes room from itself, and the search for it is rare.
func (b *binding) dropRows() {
	of := map[Short][]uint32{}
	var most Short
	for i, r := range b.rows {
		of[r.to] = append(of[r.to], i)
		if len(of[r.to]) > len(of[most]) {
			most = r.to
		}
	}
	indices := of[most]
	slices.SortFunc(indices, func(i, j uint32) int { return b.rows[i].until.Compare(b.rows[j].until) })
	for _, i := range indices[:(len(indices)+1)/2] {
		delete(b.rows, i)
	}
}

// overhear notes that a node will send to another one with the index in a handshake that passes.
// Anybody can begin a handshake with an index of others, so a row for somebody else stays: the
// one for whom it is was first.
func (r *Relay) overhear(now time.Time, node Short, handshake []byte, to Short) {
	index := handshake[4:8]
	if known, ok := r.byIndex(now, node, index); ok && known != to {
		return
	}
	r.Learn(now, node, binary.LittleEndian.Uint32(index), to)
}

// Forward returns what to do with a datagram that came from an address, and where it goes.
func (r *Relay) Forward(now time.Time, b []byte, from netip.AddrPort) (netip.AddrPort, Verdict) {
	if h, err := ParseHeader(b); err == nil {
		return r.probe(now, h, from)
	}
	if len(b) < transportMin || len(b) > MaxDatagram || b[1]|b[2]|b[3] != 0 || b[0] < initiation || b[0] > transport {
		return netip.AddrPort{}, Drop
	}
	sender, ok := r.sender(now, from)
	if !ok {
		return netip.AddrPort{}, AskWho
	}
	to, ok := r.receiver(now, sender, b)
	if !ok {
		return netip.AddrPort{}, NoRow
	}
	dst := r.bound[to]
	if dst == nil || now.After(dst.until) {
		return netip.AddrPort{}, Absent
	}
	return dst.addr, Pass
}

// sender returns the node that is bound at an address, or was a moment ago.
func (r *Relay) sender(now time.Time, from netip.AddrPort) (Short, bool) {
	node, ok := r.at[from]
	if !ok || !r.IsBound(now, node) {
		return Short{}, false
	}
	b := r.bound[node]
	return node, b.addr == from || now.Sub(b.moved) < leftFor
}

// probe forwards a sealed probe by its header.
func (r *Relay) probe(now time.Time, h Header, from netip.AddrPort) (netip.AddrPort, Verdict) {
	sender, ok := r.sender(now, from)
	if !ok || sender != h.From {
		return netip.AddrPort{}, AskWho
	}
	if r.IsBound(now, h.To) {
		return r.bound[h.To].addr, Pass
	}
	if at, ok := r.proved[h.To]; ok {
		return at, Pass
	}
	return netip.AddrPort{}, Absent
}

// receiver returns for whom a WireGuard message of a node is. The receiver of the first
// messages of a handshake will send with the index that is in them.
func (r *Relay) receiver(now time.Time, sender Short, b []byte) (Short, bool) {
	switch {
	case b[0] == initiation && len(b) == initiationLen:
		to, ok := r.byMAC1(now, sender, b)
		if ok {
			r.overhear(now, to, b, sender)
		}
		return to, ok
	case b[0] == response && len(b) == responseLen:
		to, ok := r.byIndex(now, sender, b[8:])
		if !ok {
			to, ok = r.byMAC1(now, sender, b)
		}
		if ok {
			r.overhear(now, to, b, sender)
		}
		return to, ok
	case b[0] == cookieReply && len(b) == cookieLen, b[0] == transport:
		return r.byIndex(now, sender, b[4:])
	}
	return Short{}, false
}

// Begun returns what to tell the receiver of a message that begins a session, which Forward has
// passed on to an address: whose it is. The receiver can't read that, nor see it by the
// address from which the message comes, which is this relay's. The message is longer than what
// is told.
func (r *Relay) Begun(now time.Time, b []byte, from, to netip.AddrPort) (receiver Short, m Message, ok bool) {
	index, begins := SessionIndex(b)
	if !begins {
		return Short{}, Message{}, false
	}
	sender := r.at[from]
	if b[0] == response && !r.bound[sender].allow(now) { // an initiation has been counted
		return Short{}, Message{}, false
	}
	receiver = r.at[to]
	known, ok := r.byIndex(now, receiver, b[4:])
	return receiver, Message{Op: Begun, Number: index, Node: sender}, ok && known == sender
}

// Unknown returns what to tell the sender of something that Forward answers with NoRow: that
// this relay does not know the session. It returns false if the node was told a short time ago,
// or if what is told, once sealed, would be longer: the source may be forged.
func (r *Relay) Unknown(now time.Time, b []byte, from netip.AddrPort) (sender Short, m Message, ok bool) {
	sender = r.at[from]
	bound := r.bound[sender]
	if bound == nil || b[0] != transport || len(b) < sealedLen || now.Sub(bound.told) < unknownEvery {
		return Short{}, Message{}, false
	}
	bound.told = now
	return sender, Message{Op: Unknown, Number: binary.LittleEndian.Uint32(b[4:])}, true
}

func (r *Relay) byIndex(now time.Time, sender Short, index []byte) (Short, bool) {
	bound := r.bound[sender]
	if bound == nil {
		return Short{}, false
	}
	found, ok := bound.rows[binary.LittleEndian.Uint32(index)]
	return found.to, ok && now.Before(found.until)
}

// allow reports whether a node may begin a handshake now.
func (b *binding) allow(now time.Time) bool {
	b.allowed = min(handshakeBurst, b.allowed+handshakeRate*now.Sub(b.counted).Seconds())
	b.counted = now
	if b.allowed < 1 {
		return false
	}
	b.allowed--
	return true
}

// byMAC1 tries the keys of all nodes, a microsecond each: mac1 is a keyed hash of the
// message before it, see section 5.4.4 of the WireGuard paper.
func (r *Relay) byMAC1(now time.Time, sender Short, b []byte) (Short, bool) {
	if !r.bound[sender].allow(now) {
		return Short{}, false
	}
	signed, mac := b[:len(b)-32], b[len(b)-32:len(b)-16]
	for id, to := range r.bound {
		h, err := blake2s.New128(to.mac1[:])
		if err != nil {
			panic(err) // keys of 32 bytes are valid
		}
		h.Write(signed)
		if subtle.ConstantTimeCompare(h.Sum(nil), mac) == 1 {
			return id, true
		}
	}
	return Short{}, false
}

// Nodes returns the nodes that are bound, in order.
func (r *Relay) Nodes(now time.Time) []Short {
	var all []Short
	for id := range r.bound {
		if r.IsBound(now, id) {
			all = append(all, id)
		}
	}
	slices.SortFunc(all, func(a, b Short) int { return slices.Compare(a[:], b[:]) })
	return all
}

// IsData reports whether a datagram is one of WireGuard that belongs to a session.
func IsData(b []byte) bool { return len(b) > 0 && b[0] == transport }

// SessionIndex returns the index in a message of WireGuard that begins a session: with it the
// receiver will send. It returns false for any other datagram.
func SessionIndex(b []byte) (uint32, bool) {
	begins := len(b) == initiationLen && b[0] == initiation || len(b) == responseLen && b[0] == response
	if !begins || b[1]|b[2]|b[3] != 0 {
		return 0, false
	}
	return binary.LittleEndian.Uint32(b[4:]), true
}
