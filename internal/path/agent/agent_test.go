// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/path/rawudp"
	"github.com/meshd/meshd/internal/wait"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const travel = 10 * time.Millisecond

// wire is a network on which packets take a while.
type wire struct {
	mu    sync.Mutex
	hosts []*host
	cut   map[netip.AddrPort]bool // addresses to which nothing passes
	// relays are tables by the address at which they serve, see relays_test.go.
	relays map[netip.AddrPort]*wireRelay
	tries  map[netip.AddrPort]*stranger
	tap    func(b []byte, from, to netip.AddrPort) // sees each probe; nil for nobody
}

// host is one on the wire, with its WireGuard. It has a firewall if it is closed.
type host struct {
	*wire
	id      mesh.ID
	key     wgtypes.Key
	pathKey *ecdh.PrivateKey
	addrs   []netip.AddrPort // the first one is where it sends from
	closed  bool
	sentTo  map[netip.AddrPort]time.Time // whose answers the firewall lets in, for a while
	got     func(rawudp.Datagram)
	ended   chan struct{} // closed with the port
	link    int           // by which all arrives
	*agentOf
	peers   map[wgtypes.Key]*path.Traffic
	writes  []netip.AddrPort
	sent    int // datagrams
	arrived int
	reads   int
	slow    time.Duration // how long a look at WireGuard takes
	counter uint64
	refuse  error                          // of SetEndpoint
	lost    int                            // how many calls are lost
	noWay   error                          // of dial
	mtu     int                            // of the link, for datagrams; 0 for any length. Longer ones are cut, or refused
	sources map[wgtypes.Key]netip.AddrPort // from where WireGuard sends to a peer: where the peer's packets arrived
}

// agentOf is the agent of a host.
type agentOf struct {
	*Agent
	stop func()
}

func privateKey(t testing.TB, seed byte) *ecdh.PrivateKey {
	t.Helper()
	k, err := ecdh.X25519().NewPrivateKey(bytes.Repeat([]byte{seed}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// host adds a host; its number is in its fingerprint, keys and addresses.
func (w *wire) host(t testing.TB, num byte, addrs ...string) *host {
	t.Helper()
	h := &host{
		wire: w, id: mesh.ID{num}, key: wgtypes.Key{num}, pathKey: privateKey(t, num), link: 2,
		sentTo: map[netip.AddrPort]time.Time{}, peers: map[wgtypes.Key]*path.Traffic{},
		sources: map[wgtypes.Key]netip.AddrPort{},
	}
	for _, a := range addrs {
		h.addrs = append(h.addrs, netip.MustParseAddrPort(a))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hosts = append(w.hosts, h)
	return h
}

func newWire() *wire {
	return &wire{cut: map[netip.AddrPort]bool{}, relays: map[netip.AddrPort]*wireRelay{}, tries: map[netip.AddrPort]*stranger{}}
}

// start starts, or starts again, the agent of a host, until the test ends.
func (h *host) start(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	h.mu.Lock()
	h.counter = (h.counter>>44 + 1) << 44 // as package state does
	h.ended = make(chan struct{})
	h.mu.Unlock()
	a := Start(ctx, Options{
		Cluster: "test", Self: h.id, Key: h.key, PathKey: h.pathKey,
		Counter: func() uint64 { h.mu.Lock(); defer h.mu.Unlock(); h.counter++; return h.counter },
		Port:    h, Device: h,
		Call:   func(to mesh.ID, sealed []byte) { h.call(to, sealed) },
		Inside: func(link int) bool { return link == 1 },
		OnLAN:  func(link int) bool { return link == 2 },
		Dial:   h.dial,
		Logger: slog.New(slog.DiscardHandler),
	})
	stop := sync.OnceFunc(func() {
		cancel()
		close(h.ended)
		if err := a.Wait(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	h.agentOf = &agentOf{a, stop}
}

// Serve and Send are the host's Port.
func (h *host) Serve(got func(rawudp.Datagram)) error {
	h.mu.Lock()
	h.got = got
	ended := h.ended
	h.mu.Unlock()
	<-ended
	return nil
}

func (h *host) Send(p rawudp.Packet) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sent++
	if h.mtu > 0 && len(p.Payload) > h.mtu && p.Whole {
		return fmt.Errorf("send %d bytes: %w", len(p.Payload), syscall.EMSGSIZE)
	}
	from := h.addrs[0]
	for _, a := range h.addrs {
		if a.Addr() == p.From {
			from = a
		}
	}
	h.sentTo[p.To] = time.Now()
	if h.tap != nil {
		h.tap(bytes.Clone(p.Payload), from, p.To)
	}
	if r := h.relays[p.To]; r != nil && !h.cut[p.To] {
		r.take(bytes.Clone(p.Payload), from)
		return nil
	}
	if s := h.tries[p.To]; s != nil && s.to == from {
		answer := bytes.Clone(p.Payload)
		time.AfterFunc(travel, func() { s.receive(answer) })
		return nil
	}
	to := h.at(p.To)
	if to == nil || p.TTL > 0 || h.cut[p.To] || !to.letsIn(from) {
		return nil
	}
	d := rawudp.Datagram{Payload: bytes.Clone(p.Payload), From: from, To: p.To.Addr(), Link: to.link}
	time.AfterFunc(travel, func() { to.deliver(d) })
	return nil
}

// letsIn reports whether the firewall lets in what comes from there, which holds it open.
func (h *host) letsIn(from netip.AddrPort) bool {
	if !h.closed {
		return true
	}
	if time.Since(h.sentTo[from]) >= 30*time.Second {
		return false
	}
	h.sentTo[from] = time.Now()
	return true
}

func (h *host) deliver(d rawudp.Datagram) {
	h.mu.Lock()
	h.arrived++
	got := h.got
	h.mu.Unlock()
	if got != nil {
		got(d)
	}
}

func (w *wire) at(a netip.AddrPort) *host {
	i := slices.IndexFunc(w.hosts, func(h *host) bool { return slices.Contains(h.addrs, a) })
	if i < 0 {
		return nil
	}
	return w.hosts[i]
}

func (h *host) call(to mesh.ID, sealed []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lost > 0 {
		h.lost--
		return
	}
	for _, o := range h.hosts {
		if o.id == to && o.agentOf != nil {
			time.AfterFunc(20*travel, func() { o.Called(h.id, sealed) })
		}
	}
}

// Traffic and SetEndpoint are the host's Device.
func (h *host) Traffic() (map[wgtypes.Key]path.Traffic, error) {
	time.Sleep(h.slow)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.reads++
	all := map[wgtypes.Key]path.Traffic{}
	for k, t := range h.peers {
		all[k] = *t
	}
	return all, nil
}

var errNoPeer = errors.New("no such peer")

func (h *host) SetEndpoint(peer wgtypes.Key, to netip.AddrPort) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.peers[peer] == nil {
		return errNoPeer
	}
	if h.refuse != nil {
		return h.refuse
	}
	h.peers[peer].Endpoint = to
	h.writes = append(h.writes, to)
	return nil
}

// add adds a peer to WireGuard.
func (h *host) add(peer *host, endpoint string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := &path.Traffic{}
	if endpoint != "" {
		t.Endpoint = netip.MustParseAddrPort(endpoint)
	}
	h.peers[peer.key] = t
}

func (h *host) endpoint(peer *host) netip.AddrPort {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.peers[peer.key].Endpoint
}

// talk has WireGuard send some 20 packets a second to the peer. As WireGuard does, the
// receiver takes from where they come as its endpoint.
func (h *host) talk(t testing.TB, peer *host) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	t.Cleanup(cancel)
	wg.Go(func() {
		for wait.Sleep(ctx, 20*time.Millisecond+rand.N(60*time.Millisecond)) == nil {
			h.data(peer)
		}
	})
}

func (h *host) data(peer *host) {
	h.mu.Lock()
	defer h.mu.Unlock()
	mine := h.peers[peer.key]
	if !mine.Endpoint.IsValid() {
		return
	}
	source, ok := h.sources[peer.key]
	if !ok {
		source = h.addrs[0]
	}
	mine.Sent += 128
	h.sentTo[mine.Endpoint] = time.Now()
	if r := h.relays[mine.Endpoint]; r != nil {
		if !h.cut[mine.Endpoint] {
			r.data(h, peer, source)
		}
		return
	}
	if h.at(mine.Endpoint) != peer || h.cut[mine.Endpoint] || !peer.letsIn(source) {
		return
	}
	theirs := peer.peers[h.key]
	theirs.Received += 128
	theirs.Endpoint = source
	peer.sources[h.key] = mine.Endpoint
}

// peer is what gossip tells of a host.
func (h *host) peer(candidates ...path.Candidate) Peer {
	return Peer{ID: h.id, Key: h.key, PathKey: h.pathKey.PublicKey(), Candidates: candidates}
}

func direct(addr string) path.Candidate {
	return path.Candidate{Path: path.Path{Kind: path.Direct, Addr: netip.MustParseAddrPort(addr)}, Open: true}
}

func behindFirewall(addr string) path.Candidate {
	c := direct(addr)
	c.Open = false
	return c
}

// keysTo returns the keys for what it sends to another one.
func (h *host) keysTo(t testing.TB, to *host) *path.Keys {
	t.Helper()
	keys, err := path.NewKeys("test", path.ShortOf(h.id), path.ShortOf(to.id), h.pathKey, to.pathKey.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// status returns what an agent knows of a peer.
func (h *host) statusOf(t testing.TB, peer *host) PeerStatus {
	t.Helper()
	all := h.Status()
	i := slices.IndexFunc(all, func(s PeerStatus) bool { return s.ID == peer.id })
	if i < 0 {
		t.Fatalf("status of %v has no %v: %v", h.id, peer.id, all)
	}
	return all[i]
}

// wantPath asserts that a proved path is in use, and that WireGuard has it.
func (h *host) wantPath(t testing.TB, peer *host, want path.Candidate) {
	t.Helper()
	s := h.statusOf(t, peer)
	if s.State != Probed || s.Path != want.Path || !s.Proved {
		t.Errorf("to %v: got %v, proved %t, state %d, want %v, proved", peer.id, s.Path, s.Proved, s.State, want.Path)
	}
	if got := h.endpoint(peer); got != want.Path.Addr {
		t.Errorf("endpoint of %v: got %v, want %v", peer.id, got, want.Path.Addr)
	}
}

const (
	addrA  = "198.51.100.1:51820"
	addrB  = "198.51.100.2:51820"
	addrB2 = "198.51.100.3:51820"
	dead   = "198.51.100.9:51820"
)

// two returns two hosts that have each other as WireGuard peers, without an endpoint.
func two(t testing.TB) (a, b *host) {
	t.Helper()
	w := newWire()
	a, b = w.host(t, 1, addrA), w.host(t, 2, addrB, addrB2)
	a.add(b, "")
	b.add(a, "")
	a.start(t)
	b.start(t)
	return a, b
}

// TestMoves has the first candidate dead, the path in use cut, and healed.
func TestMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := two(t)
		a.SetPeers([]Peer{b.peer(direct(dead), direct(addrB), direct(addrB2))})
		b.SetPeers([]Peer{a.peer(direct(addrA))})
		a.talk(t, b)
		b.talk(t, a)
		time.Sleep(2 * time.Second)
		select {
		case <-a.Changed():
		default:
			t.Error("nothing says that the path has changed")
		}
		s := a.statusOf(t, b)
		if s.Path.Addr != direct(addrB).Path.Addr && s.Path.Addr != direct(addrB2).Path.Addr {
			t.Fatalf("got %v, want one that lives", s.Path)
		}
		a.wantPath(t, b, path.Candidate{Path: s.Path})
		b.wantPath(t, a, direct(addrA))
		if s.RTT != 2*travel || s.Loss > 0.3 || len(s.Tried) != 3 { // answers overtake each other
			t.Errorf("got round trip %v, loss %v, %d tried, want %v, little, 3", s.RTT, s.Loss, len(s.Tried), 2*travel)
		}
		if want := []netip.AddrPort{netip.MustParseAddrPort(addrA)}; !slices.Equal(s.Seen, want) {
			t.Errorf("seen at: got %v, want %v", s.Seen, want)
		}

		other := direct(addrB)
		if s.Path == other.Path {
			other = direct(addrB2)
		}
		a.mu.Lock()
		a.cut[s.Path.Addr] = true
		a.mu.Unlock()
		time.Sleep(4 * time.Second)
		a.wantPath(t, b, other)
	})
}

// TestCutOff has a host cut off while it exchanges data with one peer and nothing with another one: it finds out
// that neither is reached any more.
func TestCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := two(t)
		c := a.host(t, 3, addrC)
		a.add(c, "")
		c.add(a, "")
		c.start(t)
		a.SetPeers([]Peer{b.peer(direct(addrB)), c.peer(direct(addrC))})
		b.SetPeers([]Peer{a.peer(direct(addrA))})
		c.SetPeers([]Peer{a.peer(direct(addrA))})
		a.talk(t, b)
		b.talk(t, a)
		time.Sleep(30 * time.Second)
		a.wantPath(t, c, direct(addrC))
		for _, addr := range []string{addrA, addrB, addrC} {
			a.set(addr, true)
		}
		time.Sleep(10 * time.Second)
		for _, peer := range []*host{b, c} {
			if s := a.statusOf(t, peer); s.Proved {
				t.Errorf("the path to %v counts as proved", peer.id)
			}
		}
	})
}

// TestSlowHost has a look at WireGuard take so long that each time some probes arrive meanwhile, and answers. None
// of them waits longer than that.
func TestSlowHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		slow := w.host(t, 1, addrA)
		slow.slow = 200 * time.Millisecond
		var peers []*host
		var all []Peer
		for i := range byte(8) {
			addr := fmt.Sprintf("203.0.113.%d:51820", i)
			h := w.host(t, 2+i, addr)
			h.add(slow, addrA)
			slow.add(h, addr)
			peers, all = append(peers, h), append(all, h.peer(direct(addr)))
		}
		slow.start(t)
		slow.SetPeers(all)
		for _, h := range peers {
			h.start(t)
			h.SetPeers([]Peer{slow.peer(direct(addrA))})
			slow.talk(t, h)
			h.talk(t, slow)
		}
		time.Sleep(time.Minute)
		for _, h := range peers {
			if s := slow.statusOf(t, h); !s.Proved || s.RTT > 2*slow.slow {
				t.Errorf("got the path %+v to %v, want one with a round trip of at most %v", s, h.id, 2*slow.slow)
			}
		}
	})
}

// TestOneWay has what this host sends to the other one's address lost, while all that comes
// from there arrives: only the peer knows that the path is dead.
func TestOneWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := two(t)
		a.add(b, addrB2)
		b.add(a, addrA)
		a.SetPeers([]Peer{b.peer(direct(addrB), direct(addrB2))})
		b.SetPeers([]Peer{a.peer(direct(addrA))})
		a.talk(t, b)
		b.talk(t, a)
		time.Sleep(5 * time.Second)
		a.wantPath(t, b, direct(addrB2))
		a.mu.Lock()
		a.cut[direct(addrB2).Path.Addr] = true
		a.mu.Unlock()
		time.Sleep(4 * time.Second)
		a.wantPath(t, b, direct(addrB))
		b.wantPath(t, a, direct(addrA))
	})
}

// TestStartsWithWireGuard has an agent start while WireGuard's endpoint works: it is proved,
// and never replaced in between.
func TestStartsWithWireGuard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := two(t)
		a.add(b, addrB2)
		b.add(a, addrA)
		a.SetPeers([]Peer{b.peer(direct(dead), direct(addrB))})
		b.SetPeers([]Peer{a.peer(direct(addrA))})
		if s := a.statusOf(t, b); s.Path != direct(addrB2).Path || s.Proved {
			t.Errorf("at the start: got %v, proved %t, want %v, not proved", s.Path, s.Proved, addrB2)
		}
		a.talk(t, b)
		time.Sleep(5 * time.Second)
		before := a.statusOf(t, b).Path
		a.stop()
		a.mu.Lock()
		a.writes = nil
		a.mu.Unlock()
		a.start(t)
		a.SetPeers([]Peer{b.peer(direct(dead), direct(addrB))})
		time.Sleep(2 * time.Second)
		a.wantPath(t, b, path.Candidate{Path: before})
		if slices.ContainsFunc(a.writes, func(w netip.AddrPort) bool { return w != before.Addr }) {
			t.Errorf("WireGuard's endpoint was set to %v, want only %v", a.writes, before.Addr)
		}
	})
}

// TestPunches has both ends behind a firewall that lets answers in, and calls by gossip, of
// which the first ones are lost.
func TestPunches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := two(t)
		a.closed, b.closed = true, true
		a.lost = 2
		a.SetPeers([]Peer{b.peer(behindFirewall(addrB))})
		b.SetPeers([]Peer{a.peer(behindFirewall(addrA))})
		time.Sleep(25 * time.Second)
		a.wantPath(t, b, direct(addrB))
		b.wantPath(t, a, direct(addrA))
	})
}

func TestPeersWithoutPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := two(t)
		same := b.wire.host(t, 2, "198.51.100.4:51820")
		same.id[15] = 1
		self := b.wire.host(t, 1, "198.51.100.5:51820")
		self.id[15] = 1
		missing := b.wire.host(t, 3, "198.51.100.6:51820")
		keyless := b.wire.host(t, 4, "198.51.100.7:51820")
		for _, h := range []*host{same, self, keyless} {
			a.add(h, "")
		}
		unknown := keyless.peer(direct("198.51.100.7:51820"))
		unknown.PathKey = nil
		b.SetPeers([]Peer{a.peer(direct(addrA))})
		a.SetPeers([]Peer{
			unknown, missing.peer(direct("198.51.100.6:51820")), self.peer(direct("198.51.100.5:51820")),
			b.peer(direct(addrB)), same.peer(direct("198.51.100.4:51820")),
		})
		time.Sleep(2 * time.Second)
		var states []State
		for _, s := range a.Status() {
			states = append(states, s.State)
		}
		if want := []State{Ambiguous, Ambiguous, Ambiguous, NotInWireGuard, NoKey}; !slices.Equal(states, want) {
			t.Errorf("got states %v, want %v", states, want)
		}
		if a.sent > 0 {
			t.Errorf("got %d datagrams, want none", a.sent)
		}

		// When the others are gone and WireGuard has the missing one, both are probed.
		a.SetPeers([]Peer{b.peer(direct(addrB)), missing.peer(direct("198.51.100.6:51820"))})
		a.add(missing, "")
		time.Sleep(2 * time.Second)
		a.wantPath(t, b, direct(addrB))
		if s := a.statusOf(t, missing); s.State != Probed {
			t.Errorf("a peer that WireGuard has now: got state %d, want %d", s.State, Probed)
		}

		// And a peer that WireGuard has no longer is not.
		a.mu.Lock()
		delete(a.peers, missing.key)
		a.mu.Unlock()
		time.Sleep(2 * time.Second)
		if s := a.statusOf(t, missing); s.State != NotInWireGuard {
			t.Errorf("a peer that WireGuard has no longer: got state %d, want %d", s.State, NotInWireGuard)
		}
	})
}

// TestNewPathKey has a host start with a new path key, of which the other one hears later.
func TestNewPathKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := two(t)
		a.SetPeers([]Peer{b.peer(direct(addrB))})
		b.SetPeers([]Peer{a.peer(direct(addrA))})
		time.Sleep(2 * time.Second)
		b.stop()
		b.pathKey = privateKey(t, 99)
		b.counter = 0
		b.start(t)
		b.SetPeers([]Peer{a.peer(direct(addrA))})
		time.Sleep(3 * time.Minute) // without traffic the path is asked every two
		if s := a.statusOf(t, b); s.Unopened == 0 || s.Proved {
			t.Errorf("before the new key is known: got %d unopened, proved %t, want some, not proved", s.Unopened, s.Proved)
		}
		a.SetPeers([]Peer{b.peer(direct(addrB))})
		time.Sleep(time.Minute)
		a.wantPath(t, b, direct(addrB))
		b.wantPath(t, a, direct(addrA))
	})
}

// TestRefusedEndpoint has WireGuard refuse an endpoint for a while.
func TestRefusedEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := two(t)
		a.refuse = errors.New("busy")
		a.SetPeers([]Peer{b.peer(direct(addrB))})
		b.SetPeers([]Peer{a.peer(direct(addrA))})
		time.Sleep(5 * time.Second)
		if got := a.endpoint(b); got.IsValid() {
			t.Fatalf("got endpoint %v although it is refused", got)
		}
		a.mu.Lock()
		a.refuse = nil
		a.mu.Unlock()
		time.Sleep(2 * time.Second)
		a.wantPath(t, b, direct(addrB))
	})
}

// TestForeignDatagrams shows an agent what it must not take.
func TestForeignDatagrams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		a, b := w.host(t, 1, addrA), w.host(t, 2, addrB) // b has no agent: the test speaks for it
		a.add(b, "")
		a.start(t)
		a.SetPeers([]Peer{b.peer()})
		keys := b.keysTo(t, a)
		ping := func(counter uint64) []byte { return keys.Seal(path.Message{Op: path.Ping}, counter) }
		forged := ping(1)
		forged[len(forged)-1]++
		stranger, elsewhere := ping(2), ping(3)
		stranger[4], elsewhere[12] = 77, 77
		good := ping(10)
		from := func(payload []byte) rawudp.Datagram {
			return rawudp.Datagram{Payload: payload, From: netip.MustParseAddrPort(addrB), To: netip.MustParseAddrPort(addrA).Addr(), Link: 2}
		}
		inside := from(ping(4))
		inside.Link = 1
		tests := []struct {
			name     string
			datagram rawudp.Datagram
			unopened uint64
			answers  int
		}{
			{"empty", from(nil), 0, 0},
			{"of WireGuard", from([]byte{1, 0, 0, 0, 5: 0}), 0, 0},
			{"forged", from(forged), 1, 0},
			{"of a stranger", from(stranger), 0, 0},
			{"to somebody else", from(elsewhere), 0, 0},
			{"too long", from(append(ping(5), make([]byte, 2000)...)), 0, 0},
			{"by a tunnel", inside, 0, 0},
			{"between a node and a relay", from(keys.Seal(path.Message{Op: path.Bound}, 6)), 0, 0},
			{"good", from(good), 0, 1},
			{"again", from(good), 1, 0},
		}
		for _, tt := range tests {
			before := a.statusOf(t, b)
			a.mu.Lock()
			a.sent = 0
			a.mu.Unlock()
			a.deliver(tt.datagram)
			synctest.Wait()
			s := a.statusOf(t, b)
			if tt.answers == 0 && len(s.Tried) != len(before.Tried) {
				t.Errorf("%s: got paths %v, want those before", tt.name, s.Tried)
			}
			if got := s.Unopened - before.Unopened; got != tt.unopened {
				t.Errorf("%s: got %d unopened, want %d", tt.name, got, tt.unopened)
			}
			if a.sent < tt.answers || tt.answers == 0 && a.sent > 0 {
				t.Errorf("%s: got %d datagrams, want %d answers", tt.name, a.sent, tt.answers)
			}
		}

		// A ping by gossip would have the answer go by gossip.
		a.mu.Lock()
		a.sent = 0
		a.mu.Unlock()
		a.Called(b.id, ping(20))
		a.Called(mesh.ID{9}, keys.Seal(path.Message{Op: path.Call}, 21))
		a.Called(b.id, nil)
		synctest.Wait()
		if a.sent > 0 {
			t.Errorf("after calls that are none: got %d datagrams, want none", a.sent)
		}
	})
}

// TestFlood has a peer send pings as fast as it can: answers are bounded, and another peer
// is still probed.
func TestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := two(t)
		evil := a.wire.host(t, 3, "198.51.100.6:51820")
		a.add(evil, "")
		keys := evil.keysTo(t, a)
		a.SetPeers([]Peer{b.peer(direct(addrB)), evil.peer()})
		b.SetPeers([]Peer{a.peer(direct(addrA))})
		const seconds = 10
		for i := range seconds * 100 {
			for j := range 50 {
				a.deliver(rawudp.Datagram{
					Payload: keys.Seal(path.Message{Op: path.Ping}, uint64(i*50+j+1)),
					From:    evil.addrs[0], To: a.addrs[0].Addr(), Link: 2,
				})
			}
			time.Sleep(10 * time.Millisecond)
		}
		a.wantPath(t, b, direct(addrB))
		if limit := seconds*2*maxSend + maxSendBurst; a.sent > limit {
			t.Errorf("got %d datagrams, want no more than %d", a.sent, limit)
		}
	})
}

type brokenPort struct{ Port }

var errBroken = errors.New("broken")

func (brokenPort) Serve(func(rawudp.Datagram)) error { return errBroken }

func TestPortBreaks(t *testing.T) {
	a := Start(t.Context(), Options{PathKey: privateKey(t, 1), Counter: func() uint64 { return 1 }, Port: brokenPort{}, Logger: slog.New(slog.DiscardHandler)})
	if err := a.Wait(); !errors.Is(err, errBroken) {
		t.Errorf("got %v, want %v", err, errBroken)
	}
	a.SetPeers(nil)
	if s := a.Status(); s != nil {
		t.Errorf("status after the end: got %v, want none", s)
	}
}

// TestSeenIsForgotten has the way between two hosts be cut: where each saw the other says nothing any more.
func TestSeenIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := two(t)
		a.SetPeers([]Peer{b.peer(direct(addrB))})
		b.SetPeers([]Peer{a.peer(direct(addrA))})
		time.Sleep(10 * time.Second)
		for _, way := range [][2]*host{{a, b}, {b, a}} {
			if len(way[0].statusOf(t, way[1]).Seen) == 0 {
				t.Fatal("nobody is seen at first")
			}
		}
		a.set(addrA, true)
		a.set(addrB, true)
		time.Sleep(5 * time.Minute)
		for _, way := range [][2]*host{{a, b}, {b, a}} {
			if s := way[0].statusOf(t, way[1]); len(s.Seen) > 0 {
				t.Errorf("seen at %v, path proved %t", s.Seen, s.Proved)
			}
		}
	})
}

// TestSeenByProbes has a node seen elsewhere by a peer that alone probes their idle path: it learns of it.
func TestSeenByProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := two(t)
		a.SetPeers([]Peer{b.peer(direct(addrB))})
		b.SetPeers([]Peer{a.peer(direct(addrA))})
		time.Sleep(10 * time.Second)
		keys := b.keysTo(t, a)
		moved := netip.MustParseAddrPort("203.0.113.81:51820")
		ping := keys.Seal(path.Message{Op: path.Ping, Seen: moved}, 1<<62)
		a.deliver(rawudp.Datagram{Payload: ping, From: b.addrs[0], To: a.addrs[0].Addr(), Link: a.link})
		synctest.Wait()
		if got := a.statusOf(t, b).Seen; !slices.Equal(got, []netip.AddrPort{moved}) {
			t.Errorf("seen at: got %v, want %v", got, moved)
		}
	})
}
