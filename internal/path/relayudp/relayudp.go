// SPDX-License-Identifier: Apache-2.0

// Package relayudp is a relay on UDP: it forwards WireGuard's datagrams and sealed probes
// between nodes that can't reach each other, and can't read them. What goes where is
// decided by path.Relay.
//
// A relay needs no port of its own. It shares that of gossip, which is open anyway: the
// kernel gives each datagram to one of two sockets by its first bytes. So gossip's loop
// does not see what is forwarded. Nodes send to the relay from WireGuard's port, and the
// relay is the endpoint that their WireGuard has for the peer:
//
//	node a ── WireGuard's port ─► relay, gossip's port ─► WireGuard's port of node b
//
// Nodes whose UDP is blocked come by a stream, see Receive and Options.
package relayudp

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/ipv6"
	"golang.org/x/time/rate"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/pktinfo"
	"github.com/meshd/meshd/internal/udpbatch"
)

// Options says who the relay is, and whose port it shares.
type Options struct {
	Cluster string
	Self    mesh.ID
	PathKey *ecdh.PrivateKey
	Secret  [32]byte      // of the cluster; seals what is for nodes at unknown addresses
	Counter func() uint64 // the next one to seal with, never used before with this path key
	Beside  *net.UDPConn  // gossip's socket. From now on it shares its port.
	MaxRate uint64        // bytes a second that are forwarded; 0 for no limit
	Kept    []path.Kept   // of the relay that ran before, see Relay.Kept
	// Stream sends datagrams to a node that has come by a stream, whose address is
	// path.StreamAddr. It doesn't block and doesn't keep them, and returns how many it has taken:
	// none if there is no such stream. It is nil if nobody comes by stream.
	Stream func(to netip.AddrPort, datagrams [][]byte) (taken int)
	Now    func() time.Time
}

// Node is one that the relay may serve.
type Node struct {
	ID      mesh.ID
	Key     wgtypes.Key     // WireGuard's
	PathKey *ecdh.PublicKey // nil while unknown: the node can't bind, but stays bound
}

// Status is what a relay has done since it was opened.
type Status struct {
	Bound     int // nodes, now
	Datagrams uint64
	Bytes     uint64
	Dropped   map[string]uint64 // datagrams, by reason
}

// The reasons why a datagram is dropped.
const (
	dropGarbage = iota
	dropStranger
	dropSession
	dropAbsent
	dropForged
	dropRate
	dropUnsent
	dropReasons
)

// RateLimit is the name of the reason that more came than may be forwarded.
const RateLimit = "rate limit"

// dropReason returns the name of a reason.
func dropReason(reason int) string {
	return [dropReasons]string{
		"not for a relay", "source not bound", "session unknown", "receiver not bound", "not authentic", RateLimit, "not sent",
	}[reason]
}

// minBurst is how much may be forwarded at once with any limit: what a sender bursts.
const minBurst = 256 << 10 // bytes

// maxLegs bounds what is remembered of addresses: twice the nodes that may be bound.
const maxLegs = 2048

// client is a node with its keys.
type client struct {
	Node
	keys *path.Keys
}

// leg is how to send to an address.
type leg struct {
	addr   *net.UDPAddr   // nil for a stream
	alone  bool           // datagrams can't be merged on this way
	local  netip.Addr     // the source address; the zero value lets the kernel choose
	source []byte         // the control message that sets it
	stream netip.AddrPort // the zero value for UDP
}

// legTo returns the leg to an address from one of this host, or from the one that the kernel
// chooses.
func (r *Relay) legTo(to netip.AddrPort, local netip.Addr) leg {
	if _, ok := path.StreamNode(to); ok {
		return leg{stream: to}
	}
	l := leg{addr: net.UDPAddrFromAddrPort(to)}
	if local.Is4() || local.IsValid() && r.six { // what was kept may be of another socket
		l.local, l.source = local, pktinfo.Source(local, r.six)
	}
	return l
}

// Relay serves nodes at one port. Its methods are safe for concurrent use.
type Relay struct {
	o     Options
	self  path.Short
	conn  *net.UDPConn
	batch *ipv6.PacketConn // messages of both families have one type
	six   bool
	// merges is whether datagrams of WireGuard for one node may be sent as one.
	merges bool

	mu      sync.Mutex
	table   *path.Relay
	who     *path.Keys
	clients map[path.Short]*client
	legs    map[netip.AddrPort]leg
	limit   *rate.Limiter
	status  Status
	offered uint64 // bytes that were to be forwarded
	dropped [dropReasons]uint64

	changes uint64 // of the table, as told last
	changed chan struct{}
}

// Open opens the relay's socket, beside one that was bound alone: so somebody else who has
// the port is noticed before.
func Open(ctx context.Context, o Options) (*Relay, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	var secret [32]byte
	if _, err := rand.Read(secret[:]); err != nil {
		return nil, fmt.Errorf("draw a secret: %w", err)
	}
	self := path.ShortOf(o.Self)
	who, err := path.WhoSealer(o.Cluster, o.Secret, self, o.PathKey.PublicKey())
	if err != nil {
		return nil, err
	}
	conn, six, err := share(ctx, o.Beside)
	if err != nil {
		return nil, fmt.Errorf("share UDP port %s with a relay: %w", o.Beside.LocalAddr(), err)
	}
	limit := rate.NewLimiter(rate.Inf, 0)
	if o.MaxRate > 0 {
		limit = rate.NewLimiter(rate.Limit(o.MaxRate), burst(o.MaxRate))
	}
	r := &Relay{
		o: o, self: self, conn: conn, batch: ipv6.NewPacketConn(conn), six: six, merges: udpbatch.CanMerge(conn),
		table: path.NewRelay(secret), who: who, clients: map[path.Short]*client{}, legs: map[netip.AddrPort]leg{}, limit: limit,
		changed: make(chan struct{}, 1),
	}
	r.table.Restore(o.Now(), o.Kept)
	for _, k := range o.Kept[:min(len(o.Kept), maxLegs)] {
		r.legs[k.Addr] = r.legTo(k.Addr, k.Local)
	}
	return r, nil
}

// Kept returns what Options take when the relay is opened again, also by another process: so
// sessions go on at once.
func (r *Relay) Kept() []path.Kept {
	all := func() []path.Kept {
		r.mu.Lock()
		defer r.mu.Unlock()
		all := r.table.Kept(r.o.Now())
		for i := range all {
			all[i].Local = r.legs[all[i].Addr].local
		}
		return all
	}()
	path.Cut(all) // nothing is forwarded while the lock is held
	return all
}

// Changed receives a value when Kept returns something else, other than that nodes stay bound for
// longer.
func (r *Relay) Changed() <-chan struct{} { return r.changed }

// tellChanged tells whoever waits for it that the table has changed.
func (r *Relay) tellChanged() {
	changes := r.table.Changes()
	if changes == r.changes {
		return
	}
	r.changes = changes
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// Offered returns how many bytes were to be forwarded since the relay was opened, also those that
// the limit has dropped.
func (r *Relay) Offered() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.offered
}

// SetRate sets another limit than that of Options: the kernel forwards beside this relay.
func (r *Relay) SetRate(bytes uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.o.Now()
	r.limit.SetLimitAt(now, rate.Limit(bytes))
	r.limit.SetBurstAt(now, burst(bytes))
}

// burst returns how many bytes may be forwarded at once with a limit, of bytes a second.
func burst(rate uint64) int { return int(max(minBurst, rate/10)) }

// Close closes the socket; all that arrives is gossip's again.
func (r *Relay) Close() error { return r.conn.Close() }

// SetNodes sets the nodes that may bind. Two nodes with one name in datagrams can't be told
// apart, and neither may.
func (r *Relay) SetNodes(nodes []Node) error {
	count := map[path.Short]int{}
	for _, n := range nodes {
		count[path.ShortOf(n.ID)]++
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	clients, mayBind := map[path.Short]*client{}, map[path.Short]wgtypes.Key{}
	for _, n := range nodes {
		short := path.ShortOf(n.ID)
		if count[short] > 1 || n.ID == r.o.Self {
			continue
		}
		mayBind[short] = n.Key
		if n.PathKey == nil {
			continue
		}
		old := r.clients[short]
		if old != nil && old.ID == n.ID && old.PathKey.Equal(n.PathKey) {
			clients[short] = &client{n, old.keys} // which remember what came before
			continue
		}
		keys, err := path.NewKeys(r.o.Cluster, r.self, short, r.o.PathKey, n.PathKey)
		if err != nil {
			errs = append(errs, fmt.Errorf("keys of node %s: %w", n.ID, err))
			continue
		}
		clients[short] = &client{n, keys}
	}
	r.table.SetKeys(mayBind)
	r.tellChanged()
	r.clients = clients
	return errors.Join(errs...)
}

// SetProved sets the addresses at which nodes are reached that need not be bound, see
// path.Relay.
func (r *Relay) SetProved(at map[path.Short]netip.AddrPort) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.table.SetProved(maps.Clone(at))
}

// Status returns what the relay does.
func (r *Relay) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.status
	s.Bound = len(r.table.Nodes(r.o.Now()))
	s.Dropped = map[string]uint64{}
	for reason, n := range r.dropped {
		s.Dropped[dropReason(reason)] = n
	}
	return s
}

// batchMin and batchSize are how many datagrams are read in one call, at first and at most: twice as many as
// the last time, because each costs, whether it comes or not. maxDatagram is how long they are read: a byte
// more than what is forwarded, so that no part of one is.
const (
	batchMin    = 8
	batchSize   = 128
	maxDatagram = path.MaxDatagram + 1
)

// Serve forwards until Close.
func (r *Relay) Serve() error {
	in := make([]ipv6.Message, batchSize)
	payloads := make([]byte, batchSize*maxDatagram)
	controls := make([]byte, batchSize*pktinfo.Room)
	for i := range in {
		in[i].Buffers = [][]byte{payloads[i*maxDatagram : (i+1)*maxDatagram]}
		in[i].OOB = controls[i*pktinfo.Room : (i+1)*pktinfo.Room]
	}
	var out outgoing
	expected := batchMin
	for {
		n, err := r.batch.ReadBatch(in[:expected], 0)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("receive as a relay: %w", err)
		}
		expected = min(max(2*n, batchMin), batchSize)
		r.handle(in[:n], &out)
		r.send(&out)
	}
}

// outgoing is what is to be sent after datagrams have come.
type outgoing struct {
	udp     udpbatch.Batch
	streams []streamBatch
}

// streamBatch is what is to be sent by one stream.
type streamBatch struct {
	to        netip.AddrPort
	datagrams [][]byte
}

// addStream adds a datagram for a stream, whose bytes must stay until Relay.send.
func (o *outgoing) addStream(to netip.AddrPort, datagram []byte) {
	last := len(o.streams) - 1
	if last < 0 || o.streams[last].to != to {
		o.streams = append(o.streams, streamBatch{to: to})
		last++
	}
	o.streams[last].datagrams = append(o.streams[last].datagrams, datagram)
}

// send sends what was put into out, and empties it.
func (r *Relay) send(out *outgoing) {
	failed, alone := out.udp.Send(r.batch)
	for _, s := range out.streams {
		failed += uint64(len(s.datagrams))
		if r.o.Stream != nil {
			failed -= uint64(r.o.Stream(s.to, s.datagrams))
		}
	}
	out.streams = out.streams[:0]
	if failed > 0 || len(alone) > 0 {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.sent(failed, alone)
	}
}

// sent notes what could not be sent, and where datagrams can't be merged: until the node there binds again.
func (r *Relay) sent(failed uint64, alone []net.Addr) {
	r.dropped[dropUnsent] += failed
	for _, a := range alone {
		at := unmapped(a)
		if l, ok := r.legs[at]; ok {
			l.alone = true
			r.legs[at] = l
		}
	}
}

// unmapped returns the address of a datagram as the table has it.
func unmapped(a net.Addr) netip.AddrPort {
	at := a.(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

// handle puts into out what is to be sent after datagrams have come.
func (r *Relay) handle(in []ipv6.Message, out *outgoing) {
	now := r.o.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range in {
		b := in[i].Buffers[0][:in[i].N]
		r.datagram(now, b, unmapped(in[i].Addr), in[i].OOB[:in[i].NN], out)
	}
	r.tellChanged()
}

// emit puts a datagram into out. Probes and handshakes are not merged, because raw sockets take them in, see package
// rawudp.
func (r *Relay) emit(payload []byte, to leg, out *outgoing) {
	if to.addr == nil {
		out.addStream(to.stream, payload)
		return
	}
	out.udp.Add(udpbatch.Datagram{
		Payload: payload, To: to.addr, Control: to.source,
		Merge: r.merges && !to.alone && path.IsData(payload),
	})
}

// Receive takes datagrams that have come by a stream, from a node's path.StreamAddr. It doesn't
// keep them.
func (r *Relay) Receive(datagrams [][]byte, from netip.AddrPort) {
	var out outgoing
	r.handleStream(datagrams, from, &out)
	r.send(&out)
}

// handleStream puts into out what is to be sent after datagrams have come by a stream.
func (r *Relay) handleStream(datagrams [][]byte, from netip.AddrPort, out *outgoing) {
	now := r.o.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range datagrams {
		r.datagram(now, b, from, nil, out)
	}
	r.tellChanged()
}

// datagram takes a datagram that has come.
func (r *Relay) datagram(now time.Time, b []byte, from netip.AddrPort, control []byte, out *outgoing) {
	if h, err := path.ParseHeader(b); err == nil && h.To == r.self {
		r.request(now, h, b, from, control, out)
		return
	}
	to, verdict := r.table.Forward(now, b, from)
	switch verdict {
	case path.Pass:
		r.offered += uint64(len(b))
		if !r.limit.AllowN(now, len(b)) {
			r.dropped[dropRate]++
			return
		}
		r.status.Datagrams++
		r.status.Bytes += uint64(len(b))
		r.emit(b, r.legOf(to), out)
		if receiver, m, ok := r.table.Begun(now, b, from, to); ok {
			r.tell(receiver, m, to, out)
		}
	case path.AskWho:
		r.dropped[dropStranger]++
		if m, ok := r.table.Who(now, len(b), from); ok {
			r.emit(r.who.Seal(m, r.o.Counter()), r.back(from, control), out)
		}
	case path.NoRow:
		r.dropped[dropSession]++
		if r.clients[r.table.At(from)] == nil {
			return // its path key is not known yet: it will be told when that is there
		}
		if sender, m, ok := r.table.Unknown(now, b, from); ok {
			r.tell(sender, m, from, out)
		}
	case path.Absent:
		r.dropped[dropAbsent]++
	default:
		r.dropped[dropGarbage]++
	}
}

// tell sends a message to a node that is bound, if its path key is known.
func (r *Relay) tell(node path.Short, m path.Message, at netip.AddrPort, out *outgoing) {
	if c := r.clients[node]; c != nil {
		r.emit(c.keys.Seal(m, r.o.Counter()), r.legOf(at), out)
	}
}

// request takes what a node has sealed for the relay itself.
func (r *Relay) request(now time.Time, h path.Header, b []byte, from netip.AddrPort, control []byte, out *outgoing) {
	c := r.clients[h.From]
	if c == nil {
		r.dropped[dropForged]++
		return
	}
	m, err := c.keys.Open(b)
	if err != nil {
		r.dropped[dropForged]++
		return
	}
	switch m.Op {
	case path.Bind:
		answer := r.table.Bind(now, h.From, c.Key, m, from)
		back := r.back(from, control)
		if r.table.Address(h.From) == from {
			r.remember(now, from, back)
		}
		r.emit(c.keys.Seal(answer, r.o.Counter()), back, out)
	case path.Row:
		r.table.Learn(now, h.From, m.Number, m.Node)
	}
}

// legOf returns the leg to an address, as a node has used it.
func (r *Relay) legOf(to netip.AddrPort) leg {
	if l, ok := r.legs[to]; ok {
		return l
	}
	return r.legTo(to, netip.Addr{})
}

// back returns the leg to where a datagram came from: from the address of this host at which
// it arrived, which is the one that NATs in between let in.
func (r *Relay) back(from netip.AddrPort, control []byte) leg {
	return r.legTo(from, pktinfo.Local(control))
}

// remember notes the leg to where a node is bound.
func (r *Relay) remember(now time.Time, at netip.AddrPort, l leg) {
	if _, known := r.legs[at]; !known && len(r.legs) >= maxLegs {
		bound := map[netip.AddrPort]bool{}
		for _, node := range r.table.Nodes(now) {
			bound[r.table.Address(node)] = true
		}
		maps.DeleteFunc(r.legs, func(at netip.AddrPort, _ leg) bool { return !bound[at] })
	}
	r.legs[at] = l
}
