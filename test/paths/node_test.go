// SPDX-License-Identifier: Apache-2.0

package paths

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/path/agent"
	"github.com/meshd/meshd/internal/path/rawudp"
	"github.com/meshd/meshd/test/lab"
)

// port is WireGuard's.
const port = 51820

// gossipTime is how long gossip takes. What a node has sent before a call is beyond its
// router when the call arrives, as on a real network.
const gossipTime = 200 * time.Millisecond

// internet is a lab whose nodes gossip by function calls.
type internet struct {
	lab   *lab.Lab
	nodes []*node
}

// node is a host with an agent.
type node struct {
	*rawudp.Conn
	*agent.Agent
	name    string
	host    *lab.Host
	source  netip.Addr // of what it sends by IPv4
	id      mesh.ID
	key     wgtypes.Key
	pathKey *ecdh.PrivateKey
	counter atomic.Uint64
	peers   []agent.Peer

	mu        sync.Mutex
	wireguard map[wgtypes.Key]path.Traffic
	last      time.Time // when it called somebody
}

func newInternet(t *testing.T) *internet {
	t.Helper()
	l, err := lab.New(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close lab: %v", err)
		}
	})
	return &internet{lab: l}
}

// node adds a host on a site of its own, or a lone one. Two sockets have WireGuard's port
// there: one in WireGuard's place, and the raw one beside it.
func (n *internet) node(ctx context.Context, t *testing.T, name string, o lab.SiteOptions) *node {
	t.Helper()
	number := byte(len(n.nodes) + 1)
	x := &node{name: name, id: mesh.ID{number}, key: wgtypes.Key{number}, wireguard: map[wgtypes.Key]path.Traffic{}}
	n.nodes = append(n.nodes, x)
	var err error
	if x.pathKey, err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
		t.Fatal(err)
	}
	if o.Underlay == "" {
		x.host, err = n.lab.Host(ctx, name, lab.Routed)
	} else {
		var s *lab.Site
		if s, err = n.lab.Site(ctx, name, o); err == nil {
			x.host, err = s.Host(ctx, name)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	x.source = x.host.Public()
	if o.Underlay == lab.Home {
		x.source = x.host.Address()
	}
	err = x.host.Do(func() error {
		beside, err := net.ListenUDP("udp", &net.UDPAddr{Port: port})
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = beside.Close() })
		x.Conn, err = rawudp.Open(rawudp.Options{Port: port, Magic: [][4]byte{path.Magic()}})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// start starts all agents, until the test ends.
func (n *internet) start(ctx context.Context, t *testing.T) {
	t.Helper()
	ready := make(chan struct{}) // when all agents exist, which call each other
	for _, x := range n.nodes {
		x.Agent = agent.Start(ctx, agent.Options{
			Cluster: "test", Self: x.id, Key: x.key, PathKey: x.pathKey,
			Counter: func() uint64 { return x.counter.Add(1) },
			Port:    x, Device: x,
			Call: func(to mesh.ID, sealed []byte) {
				<-ready
				x.noteCall()
				time.AfterFunc(gossipTime, func() { n.nodes[to[0]-1].Called(x.id, sealed) })
			},
			Logger: slog.New(slog.DiscardHandler),
		})
		t.Cleanup(func() { // closing the port ends the agent
			if err := x.Conn.Close(); err != nil {
				t.Errorf("close port of %s: %v", x.name, err)
			}
			if err := x.Wait(); err != nil {
				t.Errorf("%s: %v", x.name, err)
			}
		})
	}
	close(ready)
	n.tellPeers()
}

// tellPeers tells all agents of their peers, those first that are called by others: the
// ones with the higher keys.
func (n *internet) tellPeers() {
	for _, x := range slices.Backward(n.nodes) {
		x.SetPeers(x.peers)
		x.Status() // it has them now
	}
}

// Send is that of the port, which would look for the source where the test runs.
func (x *node) Send(p rawudp.Packet) error {
	switch six := p.To.Addr().Is6(); {
	case p.From.IsValid():
	case six && !x.host.Public6().IsValid():
		return rawudp.ErrNoFamily
	case six:
		p.From = x.host.Public6()
	default:
		p.From = x.source
	}
	return x.Conn.Send(p)
}

// Traffic and SetEndpoint are the device. It carries no data.
func (x *node) Traffic() (map[wgtypes.Key]path.Traffic, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return maps.Clone(x.wireguard), nil
}

func (x *node) SetEndpoint(peer wgtypes.Key, to netip.AddrPort) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.wireguard[peer] = path.Traffic{Endpoint: to}
	return nil
}

func (x *node) noteCall() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.last = time.Now()
}

// called returns when the node called somebody last.
func (x *node) called() time.Time {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.last
}

// know adds a peer, or candidates to it.
func (x *node) know(y *node, candidates ...path.Candidate) {
	x.mu.Lock()
	x.wireguard[y.key] = path.Traffic{}
	x.mu.Unlock()
	x.peers = append(x.peers, agent.Peer{ID: y.id, Key: y.key, PathKey: y.pathKey.PublicKey(), Candidates: candidates})
}

// own are the addresses of a lone host.
func (x *node) own() []path.Candidate {
	return candidates(true, netip.AddrPortFrom(x.host.Public(), port), netip.AddrPortFrom(x.host.Public6(), port))
}

// seen returns where others see the node, by one family.
func (x *node) seen(family int) []netip.AddrPort {
	var all []netip.AddrPort
	for _, s := range x.Status() {
		for _, a := range s.Seen {
			if a.Addr().Is4() == (family == 4) {
				all = append(all, a)
			}
		}
	}
	slices.SortFunc(all, netip.AddrPort.Compare)
	return slices.Compact(all)
}

// candidates are the addresses at which others see the node.
func (x *node) candidates(open bool) []path.Candidate {
	return slices.Concat(candidates(open, x.seen(4)...), candidates(open, x.seen(6)...))
}

func candidates(open bool, at ...netip.AddrPort) []path.Candidate {
	var all []path.Candidate
	for _, a := range at {
		all = append(all, path.Candidate{Path: path.Path{Kind: path.Direct, Addr: a}, Open: open})
	}
	return all
}

// statusOf returns what the node knows of a peer.
func (x *node) statusOf(y *node) agent.PeerStatus {
	all := x.Status()
	i := slices.IndexFunc(all, func(s agent.PeerStatus) bool { return s.ID == y.id })
	if i < 0 {
		return agent.PeerStatus{}
	}
	return all[i]
}

// pathTo returns the path to a peer, none if the peer has not answered on it.
func (x *node) pathTo(y *node) path.Path {
	s := x.statusOf(y)
	if !s.Proved {
		return path.Path{}
	}
	return s.Path
}

func (x *node) provedTo(y *node) bool { return x.pathTo(y) != path.Path{} }

func (x *node) await(ctx context.Context, t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !done(); time.Sleep(20 * time.Millisecond) {
		if ctx.Err() != nil || time.Now().After(end) {
			t.Fatalf("%s does not %s: %+v", x.name, what, x.Status())
		}
	}
}
