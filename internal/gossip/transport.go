// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
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
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/mesh"
)

// transport carries memberlist's packets and streams, and our own. All of them are
// encrypted, so that nothing from a host without the secret reaches memberlist's parsers.
// Memberlist sees one constant synthetic address per node, made from the fingerprint; the
// real address is looked up here for each packet. So a node may roam, have several
// addresses of both families, or be behind NAT, without memberlist noticing.
//
// The sender in a packet is only a claim by a host with the secret. What nodes say about
// themselves is trusted only in signed objects.
type transport struct {
	random   io.Reader
	now      func() time.Time
	log      *limitedLog
	notices  *notices
	counters *counters
	self     hello // with everything but counter, random and echo; mu guards its cluster
	label    label
	identity ed25519.PrivateKey
	state    func() []byte                                // everything that this node knows, as for a push/pull; not called under mu
	trusts   func(mesh.ID) bool                           // whether a node is trusted; not called under mu
	filter   func(network string, to netip.AddrPort) bool // for tests: whether udp or tcp reaches the address

	proxy Proxy // nil for none

	udp     udpSocket
	tcp     []*net.TCPListener // the first one on UDP's port, TLS is accepted at the others
	tls     *tls.Config        // to accept it
	turns   turns
	carrier atomic.Pointer[Carrier]

	packets chan *memberlist.Packet
	streams chan net.Conn
	inbound chan message
	counter atomic.Uint64

	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	mu        sync.Mutex
	ring      keyring
	addresses *addressTable
	arrivals  arrivals
	replays   replays
	offers    map[string]*stream // streams for memberlist's Join, by name
	places    streamPlaces       // of inbound streams
	streamsOf map[mesh.ID]int    // streams of each node that has proved its identity
	open      map[net.Conn]struct{}
}

// message is the payload of a packet that is not memberlist's.
type message struct {
	from    mesh.ID
	kind    packetKind
	payload []byte
}

var _ memberlist.NodeAwareTransport = (*transport)(nil)

// listen opens the UDP socket and the TCP listener on one port, further TCP listeners, and
// starts the transport's tasks.
func (t *transport) listen(ctx context.Context, bind string, further []string) error {
	udp, tcp, err := bindBoth(ctx, bind)
	if err != nil {
		return err
	}
	t.tcp, t.turns = []*net.TCPListener{tcp}, newTurns()
	if t.udp, err = newUDPSocket(udp); err != nil {
		return errors.Join(err, udp.Close(), tcp.Close())
	}
	if err := t.listenAt(ctx, further); err != nil {
		return errors.Join(err, udp.Close(), t.closeListeners())
	}
	_ = udp.SetReadBuffer(receiveBuffer) // the system may allow less
	t.self.port = t.bound().Port()
	t.packets = make(chan *memberlist.Packet)
	t.streams = make(chan net.Conn)
	t.inbound = make(chan message, 256)
	t.arrivals = make(arrivals)
	t.replays.windows = make(map[mesh.ID]*window)
	t.offers = make(map[string]*stream)
	t.open = make(map[net.Conn]struct{})
	t.places, t.streamsOf = newStreamPlaces(fileLimit()), make(map[mesh.ID]int)
	t.ctx, t.cancel = context.WithCancel(context.WithoutCancel(ctx))
	t.tasks.Go(t.readPackets)
	for i, l := range t.tcp {
		t.tasks.Go(func() { t.acceptStreams(l, i > 0) })
	}
	return nil
}

// bindBoth binds UDP and TCP to the same port. If the kernel chooses the port, it may be
// in use for the second protocol, so this may take a few attempts.
func bindBoth(ctx context.Context, bind string) (*net.UDPConn, *net.TCPListener, error) {
	host, port, err := net.SplitHostPort(bind)
	if err != nil {
		return nil, nil, fmt.Errorf("gossip.bind %q: want host:port or :port: %w", bind, err)
	}
	lc := net.ListenConfig{Control: allowMissingAddress}
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

// allowMissingAddress lets a socket be bound to an address that the host does not have yet,
// for example because DHCP is late: see IP_FREEBIND in ip(7), which IPv6 has too.
func allowMissingAddress(_, _ string, c syscall.RawConn) error {
	var optionErr error
	err := c.Control(func(fd uintptr) { optionErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1) })
	return errors.Join(err, optionErr)
}

func bindError(bind, network string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("gossip.bind %s: the %s port is used by another program; stop it, or choose another port: %w", bind, network, err)
	}
	return fmt.Errorf("gossip.bind %s: %w", bind, err)
}

// bound returns the address of the sockets.
func (t *transport) bound() netip.AddrPort {
	return unmapped(t.udp.LocalAddr().(*net.UDPAddr).AddrPort())
}

// readPackets receives packets until the socket is closed.
func (t *transport) readPackets() {
	buf := make([]byte, 2*maxPacket)
	for {
		n, from, at, err := t.udp.receive(buf)
		if t.ctx.Err() != nil {
			return
		}
		if err != nil {
			t.log.at(slog.LevelWarn, "read gossip packet", "err", err)
			t.pause()
			continue
		}
		t.receive(buf[:n], from, at)
	}
}

// pause waits a little, so that a broken socket does not cause a busy loop.
func (t *transport) pause() {
	select {
	case <-time.After(10 * time.Millisecond):
	case <-t.ctx.Done():
	}
}

// receive checks one packet, which arrived at an address of this host, and passes its
// payload on.
func (t *transport) receive(b []byte, from netip.AddrPort, at netip.Addr) {
	p, ok := t.openPacket(b, from)
	if !ok {
		return
	}
	admitted, ask := t.admitPacket(p, len(b), from, at)
	if !admitted {
		t.counters.add("packet-replayed")
		return
	}
	if ask {
		t.sendVia(p.from, from, packet{kind: kindAsk, want: true})
	}
	if p.want {
		t.sendAnswer(p, from)
	}
	t.deliver(p, from)
}

// openPacket decrypts a packet of another node of this cluster.
func (t *transport) openPacket(b []byte, from netip.AddrPort) (packet, bool) {
	p, err := t.keys().openPacket(b, t.self.id)
	switch {
	case err != nil:
		t.counters.add("packet-sealed")
		t.log.at(slog.LevelDebug, "packet dropped", "from", from, "err", err)
		return packet{}, false
	case p.label != t.label:
		t.counters.add("packet-cluster")
		return packet{}, false
	case p.from == t.self.id:
		t.counters.add("packet-own")
		return packet{}, false
	}
	return p, true
}

// deliver passes on the payload of a packet.
func (t *transport) deliver(p packet, from netip.AddrPort) {
	switch p.kind {
	case kindHere, kindAsk:
	case kindMemberlist:
		if err := eachMessage(p.payload, func(byte, []byte) {}); err != nil {
			t.counters.add("packet-refused")
			t.log.at(slog.LevelWarn, "packet refused", "from", from, "peer", p.from, "err", err)
			return
		}
		select {
		case t.packets <- &memberlist.Packet{Buf: p.payload, From: net.UDPAddrFromAddrPort(from), Timestamp: time.Now()}:
		case <-t.ctx.Done():
		}
	case kindObjects, kindSync, kindCall, kindQuestion, kindAnswer, kindOrder:
		if !trySend(t.inbound, message{p.from, p.kind, p.payload}) {
			t.counters.add("packet-overload")
		}
	default:
		t.counters.add("packet-kind")
	}
}

// admitPacket checks that a packet of that length is new, and records from where it came and
// at which address of this host it arrived. It returns whether to ask for an answer from there.
func (t *transport) admitPacket(p packet, length int, from netip.AddrPort, at netip.Addr) (admitted, ask bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.replays.admit(p.from, p.boot, p.counter) {
		return false, false
	}
	now := t.now()
	t.addresses.countTunnelled(p.from, from.Addr(), 0, inTunnel(length, from.Addr()))
	t.arrivals.note(from, at, now)
	if p.kind == kindHere && len(p.payload) == 8 {
		t.addresses.noteAnswer(p.from, binary.BigEndian.Uint64(p.payload), now)
	}
	if p.want {
		t.addresses.sawAt(p.from, from, now)
	} else {
		ask = t.addresses.heardFrom(p.from, from, now)
	}
	return true, ask
}

// ourHello returns our hello for a new stream.
func (t *transport) ourHello() hello {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.self
	h.counter = t.counter.Load()
	return h
}

func (t *transport) handshaker() handshaker { return handshaker{t.keys(), t.random, t.identity} }

// keys returns the keys in use.
func (t *transport) keys() keyring {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ring
}

// send encrypts a payload and sends it to the address that is due. A packet that can't be
// sent counts as lost: the callers notice that no answer comes, and have other ways.
func (t *transport) send(to mesh.ID, kind packetKind, payload []byte) {
	if len(payload) > maxPayload {
		t.counters.add("packet-size")
		return
	}
	now := t.now()
	t.mu.Lock()
	addr, want, ok := t.addresses.next(to, now)
	silent := !ok || t.addresses.isSilent(to, now)
	t.mu.Unlock()
	if silent {
		t.carry(to, packet{kind: kind, payload: payload})
	}
	if !ok {
		t.counters.add("packet-no-path")
		return
	}
	t.sendVia(to, addr, packet{kind: kind, want: want, payload: payload})
}

// sendAnswer answers a packet that asks for an answer, to the address from which it came,
// and if necessary to another address too. That second answer may ask for an answer
// itself, but the answer to it does not ask again, so the exchange ends.
func (t *transport) sendAnswer(q packet, from netip.AddrPort) {
	now := t.now()
	p := packet{kind: kindHere, payload: binary.BigEndian.AppendUint64(nil, q.counter)}
	t.mu.Lock()
	other, want := t.addresses.otherAddress(q.from, from, now)
	t.mu.Unlock()
	t.sendVia(q.from, from, p)
	if other.IsValid() && q.kind != kindHere {
		p.want = want
		t.sendVia(q.from, other, p)
	}
}

// numbered returns a packet with this node as its sender, and the next counter.
func (t *transport) numbered(p packet) packet {
	p.label, p.from, p.boot, p.counter = t.label, t.self.id, t.self.boot, t.counter.Add(1)
	return p
}

// sendVia encrypts a packet and sends it to an address.
func (t *transport) sendVia(to mesh.ID, addr netip.AddrPort, p packet) {
	p = t.numbered(p)
	b, err := t.keys().sealPacket(t.random, p, to)
	if err != nil {
		t.log.at(slog.LevelError, "seal packet", "err", err)
		return
	}
	t.mu.Lock()
	if p.want {
		t.addresses.noteQuestion(to, p.counter, addr)
	}
	source := t.arrivals.source(addr, t.now())
	t.addresses.countTunnelled(to, addr.Addr(), inTunnel(len(b), addr.Addr()), 0)
	t.mu.Unlock()
	if t.filter != nil && !t.filter("udp", addr) {
		return
	}
	if err := t.udp.send(b, addr, source); err != nil {
		t.counters.add("packet-unsent")
		t.mu.Lock()
		t.addresses.noteSendError(to, addr)
		t.mu.Unlock()
	}
}

// metAt returns where each node was met last outside of the mesh.
func (t *transport) metAt() map[mesh.ID]netip.Addr {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.addresses.metAt(t.now())
}

// noteMet notes that a node has proved its identity in a greeting.
func (t *transport) noteMet(id mesh.ID) {
	if !t.trusts(id) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.addresses.node(id).met = true
}

// hasMet reports whether a node has proved its identity in a greeting.
func (t *transport) hasMet(id mesh.ID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.addresses.nodes[id]
	return n != nil && n.met
}

// reaches reports whether a node has answered us just now.
func (t *transport) reaches(id mesh.ID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.addresses.reaches(id, t.now())
}

// hears reports whether a packet of a node has come within the time that NATs remember it.
func (t *transport) hears(id mesh.ID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.addresses.hears(id, t.now())
}

// isSilent reports whether packets to a node are not answered, and none come by stream either.
func (t *transport) isSilent(id mesh.ID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	return t.addresses.isSilent(id, now) && !t.addresses.isCarried(id, now)
}

// reachable reports whether an address of a node is known.
func (t *transport) reachable(id mesh.ID) bool {
	return len(t.targetsOf(id)) > 0
}

// syntheticIP returns a node's address in memberlist: a unique local address (RFC 4193)
// made from the first 120 bits of its fingerprint.
func syntheticIP(id mesh.ID) net.IP {
	ip := make(net.IP, 0, net.IPv6len)
	return append(append(ip, 0xfd), id[:15]...)
}

// FinalAdvertiseAddr returns our synthetic address.
func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return syntheticIP(t.self.id), syntheticPort, nil
}

// WriteTo is not used by memberlist, because all nodes have names.
func (t *transport) WriteTo([]byte, string) (time.Time, error) {
	return time.Time{}, errors.New("send packet: the node has no name")
}

// WriteToAddress sends one of memberlist's packets to the node with that name.
func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	id, err := nodeID(a.Name)
	if err != nil {
		return time.Time{}, fmt.Errorf("send packet: %w", err)
	}
	t.send(id, kindMemberlist, b)
	return time.Now(), nil
}

// PacketCh returns the channel of memberlist's packets.
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh returns the channel of inbound streams.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// Shutdown closes everything and waits for the transport's tasks.
func (t *transport) Shutdown() error {
	t.cancel()
	err := errors.Join(t.udp.Close(), t.closeListeners())
	t.mu.Lock()
	for conn := range t.open {
		conn.Close()
	}
	t.mu.Unlock()
	t.tasks.Wait()
	return err
}
