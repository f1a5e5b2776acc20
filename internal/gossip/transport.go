// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/meshd/meshd/internal/mesh"
)

// transport carries memberlist's packets and streams, and ours. Everything is
// sealed, so that nothing which somebody without the secret sends reaches
// memberlist's parsers. Towards memberlist each node has one constant synthetic
// address, made of its fingerprint; where it really is, is looked up here for
// each packet. So a node may roam, have several addresses of both families, or
// sit behind NAT, and memberlist sees nothing of it.
//
// The sender of a packet is a claim of somebody who has the secret. What nodes
// say of themselves is believed only in signed objects, and what they say of us only
// in streams, see voices.
type transport struct {
	random   io.Reader
	now      func() time.Time
	log      *limitedLog
	notices  *notices
	counters *counters
	self     hello // with everything but counter, random, echo and you; mu guards its cluster
	label    label
	identity ed25519.PrivateKey
	trusts   func(mesh.ID) bool                           // whose word counts; not called under mu
	changed  func()                                       // called when there is news for the view, under mu
	filter   func(network string, to netip.AddrPort) bool // tests: whether udp or tcp gets there

	udp *net.UDPConn
	tcp *net.TCPListener

	packets  chan *memberlist.Packet
	streams  chan net.Conn
	inbound  chan message
	counter  atomic.Uint64
	dialling chan struct{} // a place for each address that is dialled back

	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	mu        sync.Mutex
	ring      keyring
	paths     *paths
	replays   replays
	voices    *voices
	offers    map[string]*stream // joined streams that memberlist is to take
	places    streamPlaces       // of inbound streams
	streamsOf map[mesh.ID]int    // how many of those that have proved themselves are whose
	open      map[net.Conn]struct{}
}

// message is a packet's payload that is not memberlist's.
type message struct {
	from    mesh.ID
	kind    packetKind
	payload []byte
}

var _ memberlist.NodeAwareTransport = (*transport)(nil)

// listen opens the UDP socket and the TCP listener on one port and starts the
// transport's tasks.
func (t *transport) listen(ctx context.Context, bind string) error {
	udp, tcp, err := bindBoth(ctx, bind)
	if err != nil {
		return err
	}
	t.udp, t.tcp = udp, tcp
	_ = udp.SetReadBuffer(receiveBuffer) // as much as the system allows
	t.self.port = t.bound().Port()
	t.packets = make(chan *memberlist.Packet)
	t.streams = make(chan net.Conn)
	t.inbound = make(chan message, 256)
	t.replays.windows = make(map[mesh.ID]*window)
	t.dialling = make(chan struct{}, maxDialBacks)
	t.offers = make(map[string]*stream)
	t.open = make(map[net.Conn]struct{})
	t.places, t.streamsOf = newStreamPlaces(fileLimit()), make(map[mesh.ID]int)
	t.ctx, t.cancel = context.WithCancel(context.WithoutCancel(ctx))
	t.tasks.Go(t.readPackets)
	t.tasks.Go(t.acceptStreams)
	return nil
}

// bindBoth binds UDP and TCP to the same port. If the kernel chooses the port,
// the second may be taken, so that takes a few tries.
func bindBoth(ctx context.Context, bind string) (*net.UDPConn, *net.TCPListener, error) {
	host, port, err := net.SplitHostPort(bind)
	if err != nil {
		return nil, nil, fmt.Errorf("gossip.bind %q: want host:port or :port: %w", bind, err)
	}
	var lc net.ListenConfig
	for try := 0; ; try++ {
		udp, err := lc.ListenPacket(ctx, "udp", bind)
		if err != nil {
			return nil, nil, bindError(bind, "udp", err)
		}
		at := strconv.Itoa(udp.LocalAddr().(*net.UDPAddr).Port)
		tcp, err := lc.Listen(ctx, "tcp", net.JoinHostPort(host, at))
		if err == nil {
			return udp.(*net.UDPConn), tcp.(*net.TCPListener), nil
		}
		udp.Close()
		if port != "0" || try == 10 {
			return nil, nil, bindError(bind, "tcp", err)
		}
	}
}

func bindError(bind, network string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("gossip.bind %s: the %s port is used by another program; stop it, or choose another port: %w", bind, network, err)
	}
	return fmt.Errorf("gossip.bind %s: %w", bind, err)
}

// bound is the address of the sockets.
func (t *transport) bound() netip.AddrPort {
	return unmapped(t.udp.LocalAddr().(*net.UDPAddr).AddrPort())
}

// readPackets takes packets in, until the socket is closed.
func (t *transport) readPackets() {
	buf := make([]byte, 2*maxPacket)
	for {
		n, from, err := t.udp.ReadFromUDPAddrPort(buf)
		if t.ctx.Err() != nil {
			return
		}
		if err != nil {
			t.log.at(slog.LevelWarn, "read gossip packet", "err", err)
			t.pause()
			continue
		}
		t.receive(buf[:n], unmapped(from))
	}
}

// pause keeps a broken socket from turning a loop into a busy one.
func (t *transport) pause() {
	select {
	case <-time.After(10 * time.Millisecond):
	case <-t.ctx.Done():
	}
}

// receive checks one packet and hands its payload on.
func (t *transport) receive(b []byte, from netip.AddrPort) {
	p, err := t.keys().openPacket(b, t.self.id)
	switch {
	case err != nil:
		t.counters.add("packet-sealed")
		t.log.at(slog.LevelDebug, "packet dropped", "from", from, "err", err)
		return
	case p.label != t.label:
		t.counters.add("packet-cluster")
		return
	case p.from == t.self.id:
		t.counters.add("packet-own")
		return
	}
	admitted, ask := t.admit(p, from)
	if !admitted {
		t.counters.add("packet-replayed")
		return
	}
	if ask {
		t.sendVia(p.from, from, packet{kind: kindAsk, want: true})
	}
	if p.want {
		t.answer(p, from)
	}
	switch p.kind {
	case kindHere, kindAsk:
	case kindMemberlist:
		if err := eachMessage(p.payload, func(byte, []byte) {}); err != nil {
			t.counters.add("packet-refused")
			t.log.at(slog.LevelWarn, "packet refused", "from", from, "node", p.from, "err", err)
			return
		}
		select {
		case t.packets <- &memberlist.Packet{Buf: p.payload, From: net.UDPAddrFromAddrPort(from), Timestamp: time.Now()}:
		case <-t.ctx.Done():
		}
	case kindObjects, kindSync:
		select {
		case t.inbound <- message{p.from, p.kind, p.payload}:
		default:
			t.counters.add("packet-overload")
		}
	default:
		t.counters.add("packet-kind")
	}
}

// admit checks that a packet is new, and learns from where it came. It says
// whether to ask for an answer from there.
func (t *transport) admit(p packet, from netip.AddrPort) (admitted, ask bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.replays.admit(p.from, p.boot, p.counter) {
		return false, false
	}
	now := t.now()
	if p.kind == kindHere && len(p.payload) == 8 {
		t.paths.answered(p.from, binary.BigEndian.Uint64(p.payload), now)
	}
	if p.want {
		t.paths.meet(p.from, from, now)
	} else {
		ask = t.paths.hear(p.from, from, now)
	}
	return true, ask
}

// ourHello is what we say at the beginning of a stream now.
func (t *transport) ourHello() hello {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.self
	h.counter = t.counter.Load()
	return h
}

func (t *transport) greeter() greeter { return greeter{t.keys(), t.random, t.identity} }

// keys returns the keys that are in use now.
func (t *transport) keys() keyring {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ring
}

// send seals a payload and sends it over the path that is due. A packet that
// can't be sent is a lost packet: those above find out that no answer comes,
// and have other ways.
func (t *transport) send(to mesh.ID, kind packetKind, payload []byte) {
	if len(payload) > maxPayload {
		t.counters.add("packet-size")
		return
	}
	now := t.now()
	t.mu.Lock()
	addr, want, ok := t.paths.next(to, now)
	t.mu.Unlock()
	if !ok {
		t.counters.add("packet-no-path")
		return
	}
	t.sendVia(to, addr, packet{kind: kind, want: want, payload: payload})
}

// answer answers a question, back to where it came from, and if need be over
// another path too. Such an answer may be a question again, but the answer to
// that is not, so that there is an end.
func (t *transport) answer(q packet, from netip.AddrPort) {
	now := t.now()
	p := packet{kind: kindHere, payload: binary.BigEndian.AppendUint64(nil, q.counter)}
	t.mu.Lock()
	other, want := t.paths.instead(q.from, from, now)
	t.mu.Unlock()
	t.sendVia(q.from, from, p)
	if other.IsValid() && q.kind != kindHere {
		p.want = want
		t.sendVia(q.from, other, p)
	}
}

// sendVia seals a packet and sends it to an address.
func (t *transport) sendVia(to mesh.ID, addr netip.AddrPort, p packet) {
	p.label, p.from, p.boot, p.counter = t.label, t.self.id, t.self.boot, t.counter.Add(1)
	if p.want {
		t.mu.Lock()
		t.paths.ask(to, p.counter, addr)
		t.mu.Unlock()
	}
	b, err := t.keys().sealPacket(t.random, p, to)
	if err != nil {
		t.log.at(slog.LevelError, "seal packet", "err", err)
		return
	}
	if t.filter != nil && !t.filter("udp", addr) {
		return
	}
	if _, err := t.udp.WriteToUDPAddrPort(b, addr); err != nil {
		t.counters.add("packet-unsent")
		t.mu.Lock()
		t.paths.fail(to, addr)
		t.mu.Unlock()
	}
}

// sightings returns where others see us, and where they were seen of late.
func (t *transport) sightings() ([]mesh.Observation, map[mesh.ID]netip.AddrPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	seen := make(map[mesh.ID]netip.AddrPort)
	for id := range t.paths.nodes {
		if addr, at := t.paths.underlay(id, now); now.Sub(at) <= viewPathFor {
			seen[id] = addr
		}
	}
	return t.voices.observations(now), seen
}

// isSilent says whether packets to a node go unanswered.
func (t *transport) isSilent(id mesh.ID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.paths.isSilent(id, t.now())
}

// reachable says whether there is an address to try for a node.
func (t *transport) reachable(id mesh.ID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.paths.order(id, t.now())) > 0
}

// syntheticIP is a node's address in memberlist: a unique local one (RFC 4193)
// of the first 120 bits of its fingerprint.
func syntheticIP(id mesh.ID) net.IP {
	ip := make(net.IP, 0, net.IPv6len)
	return append(append(ip, 0xfd), id[:15]...)
}

// FinalAdvertiseAddr returns our synthetic address.
func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return syntheticIP(t.self.id), syntheticPort, nil
}

// WriteTo is not used by memberlist where nodes have names.
func (t *transport) WriteTo([]byte, string) (time.Time, error) {
	return time.Time{}, errors.New("send packet: the node has no name")
}

// WriteToAddress sends one of memberlist's packets to the node of that name.
func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	id, err := nodeID(a.Name)
	if err != nil {
		return time.Time{}, fmt.Errorf("send packet: %w", err)
	}
	t.send(id, kindMemberlist, b)
	return time.Now(), nil
}

// PacketCh gives memberlist its packets.
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh gives memberlist the inbound streams.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// Shutdown closes everything and waits for the transport's tasks.
func (t *transport) Shutdown() error {
	t.cancel()
	err := errors.Join(t.udp.Close(), t.tcp.Close())
	t.mu.Lock()
	for conn := range t.open {
		conn.Close()
	}
	t.mu.Unlock()
	t.tasks.Wait()
	return err
}
