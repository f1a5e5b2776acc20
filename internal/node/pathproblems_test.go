// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/path"
)

// pathWorld has node 1 among others, which all answer directly. Nodes 3 and 4 have reached nodes
// 1 and 2 as strangers.
type pathWorld struct {
	t     *testing.T
	m     Memory
	in    Input
	peers []PathPeer
	told  []mesh.Problem
	wait  time.Duration
}

func newPathWorld(t *testing.T) *pathWorld {
	m, in := relayMesh(3)
	w := &pathWorld{t: t, m: m, in: in}
	w.in.Now = time.Unix(1e9, 0)
	w.in.Paths.InUse, w.in.Paths.Proved = make(map[mesh.ID]path.Path), make(map[mesh.ID]netip.AddrPort)
	w.in.Paths.Received = make(map[mesh.ID]time.Time)
	for n := 2; n <= 4; n++ {
		w.answer(n, path.Direct)
	}
	w.reached(3, 1, true)
	w.reached(3, 2, true)
	w.reached(4, 1, true)
	w.reached(4, 2, true)
	w.peers = w.m.PathPeers(w.in, w.m.Configure(w.in), nil)
	return w
}

func (w *pathWorld) id(n int) mesh.ID { return w.in.View.Records[n-1].ID() }

// answer has a node answer on a path of one kind: on none if it is path.None.
func (w *pathWorld) answer(n int, kind path.Kind) {
	p := path.Path{Kind: kind, Addr: netip.MustParseAddrPort("203.0.113.9:1")}
	delete(w.in.Paths.Proved, w.id(n))
	switch kind {
	case path.None:
		p = path.Path{}
	case path.Relayed:
		p.Relay = path.ShortOf(w.id(3))
		fallthrough
	default:
		w.in.Paths.Proved[w.id(n)] = p.Addr
	}
	w.in.Paths.InUse[w.id(n)] = p
}

// reached has one node say whether it has reached another one as a stranger.
func (w *pathWorld) reached(author, subject int, reached bool) {
	id := w.id(author)
	i := slices.IndexFunc(w.in.View.Reaches, func(r mesh.Reach) bool { return r.Author == id })
	if i < 0 {
		i = len(w.in.View.Reaches)
		w.in.View.Reaches = append(w.in.View.Reaches, mesh.Reach{Author: id})
	}
	r := &w.in.View.Reaches[i]
	r.Tried = slices.DeleteFunc(r.Tried, func(t mesh.Tried) bool { return t.Subject == w.id(subject) })
	r.Tried = append(r.Tried, mesh.Tried{Subject: w.id(subject), Addr: netip.MustParseAddrPort("203.0.113.1:51820"), Reached: reached})
}

// after lets time pass, and looks.
func (w *pathWorld) after(d time.Duration) {
	w.in.Now = w.in.Now.Add(d)
	w.told, w.wait = w.m.PathProblems(w.in, w.peers)
}

// problem has one problem, which names node 2 and has all these words, or none.
func (w *pathWorld) problem(kind mesh.ProblemKind, words ...string) {
	w.t.Helper()
	if kind == "" {
		if len(w.told) > 0 {
			w.t.Errorf("got problems %+v, want none", w.told)
		}
		return
	}
	if len(w.told) != 1 || w.told[0].Kind != kind || w.told[0].Node != "2" {
		w.t.Fatalf("got problems %+v, want one of the kind %s with node 2", w.told, kind)
	}
	for _, word := range words {
		if text := w.told[0].Text + " → " + w.told[0].Advice; !strings.Contains(text, word) {
			w.t.Errorf("got problem %q, want %q in it", text, word)
		}
	}
}

func TestNoPath(t *testing.T) {
	w := newPathWorld(t)
	w.peers[0].Relays = []mesh.ID{w.id(3)}
	w.answer(2, path.None)
	w.after(0)
	if w.wait != pathPatience {
		t.Errorf("asks again in %s, want %s", w.wait, pathPatience)
	}
	w.after(pathPatience - 1)
	w.problem("")
	if w.wait != 1 {
		t.Errorf("asks again in %s, want a nanosecond", w.wait)
	}
	w.after(1)
	w.problem(ProblemNoPath, "no answer at 203.0.113.2:51820, through 3 →", "between port 51820 of this host and 203.0.113.2:51820:")
	if w.wait != 0 {
		t.Errorf("asks again in %s, although nothing is to be expected", w.wait)
	}
	w.after(time.Hour)
	w.problem(ProblemNoPath)
	w.answer(2, path.Relayed)
	w.after(0)
	w.problem("")
}

// TestNoPathOfOthers: what is not a problem of the two ends, or not theirs alone.
func TestNoPathOfOthers(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*pathWorld)
		want   mesh.ProblemKind
	}{
		{"it lives, and nothing comes", func(*pathWorld) {}, ProblemNoPath},
		{"WireGuard has an endpoint that does not answer", func(w *pathWorld) {
			w.in.Paths.InUse[w.id(2)] = path.At(netip.MustParseAddrPort("203.0.113.2:51820"))
		}, ProblemNoPath},
		{"it has died", func(w *pathWorld) { delete(w.in.View.Alive, w.id(2)) }, ""},
		{"WireGuard does not have it yet", func(w *pathWorld) { delete(w.in.Paths.InUse, w.id(2)) }, ""},
		{"WireGuard receives something", func(w *pathWorld) { w.in.Paths.Received[w.id(2)] = w.in.Now.Add(pathPatience - 1) }, ""},
		{"nobody answers over UDP", func(w *pathWorld) {
			w.answer(3, path.None)
			w.answer(4, path.Stream)
		}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newPathWorld(t)
			w.answer(2, path.None)
			tt.change(w)
			for _, d := range []time.Duration{0, pathPatience} {
				w.in.Now = w.in.Now.Add(d)
				w.m.WantedStreams(w.in, nil)
				w.after(0)
			}
			w.problem(tt.want)
		})
	}
}

// TestNoPathComesAndGoes: a peer that answers now and then is not silent all the time.
func TestNoPathComesAndGoes(t *testing.T) {
	w := newPathWorld(t)
	for range 10 {
		w.answer(2, path.None)
		w.after(time.Second)
		w.after(pathPatience - 1)
		w.problem("")
		w.answer(2, path.Direct)
		w.after(time.Second)
	}
}

// TestNoPathWithoutAddress: two nodes that nobody reaches need a third one.
func TestNoPathWithoutAddress(t *testing.T) {
	w := newPathWorld(t)
	w.peers[0].Candidates, w.peers[0].Relays = nil, nil
	w.answer(2, path.None)
	w.after(0)
	w.after(pathPatience)
	w.problem(ProblemNoPath, "no address of it is known", "a third node")
}

func TestDetour(t *testing.T) {
	for _, tt := range []struct {
		name   string
		kind   path.Kind
		change func(*pathWorld)
		want   string // "" for no problem
	}{
		{"others reach both", path.Relayed, func(*pathWorld) {}, "no answer at 203.0.113.2:51820; packets go through 3 meanwhile →"},
		{"others reach both, over TCP", path.Stream, func(*pathWorld) {}, "packets go over TCP meanwhile"},
		{"the two are not asked", path.Relayed, func(w *pathWorld) {
			w.reached(1, 2, false)
			w.reached(2, 1, false)
		}, "through 3"},
		{"it is reached directly", path.Direct, func(*pathWorld) {}, ""},
		{"nobody has reached this node", path.Relayed, func(w *pathWorld) {
			w.reached(3, 1, false)
			w.reached(4, 1, false)
		}, ""},
		{"as many have not reached it", path.Relayed, func(w *pathWorld) { w.reached(3, 2, false) }, ""},
		{"its neighbors have reached it", path.Relayed, func(w *pathWorld) {
			for _, n := range []int{2, 3, 4} {
				w.in.View.Records[n-1].Location = "office"
			}
		}, ""},
		{"of a family that this host does not have", path.Relayed, func(w *pathWorld) { w.peers[0].Candidates = nil }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newPathWorld(t)
			w.answer(2, tt.kind)
			tt.change(w)
			w.after(0)
			w.after(pathPatience - 1)
			w.problem("")
			w.after(1)
			if tt.want == "" {
				w.problem("")
				return
			}
			w.problem(ProblemDetour, tt.want)
			w.answer(2, path.Direct)
			w.after(0)
			w.problem("")
		})
	}
}

// TestTroublesAreBounded: a problem names some of many addresses.
func TestTroublesAreBounded(t *testing.T) {
	w := newPathWorld(t)
	for port := range uint16(50) {
		at := netip.AddrPortFrom(netip.MustParseAddr("203.0.113.2"), 1+port)
		w.peers[0].Candidates = append(w.peers[0].Candidates, path.Candidate{Path: path.Path{Kind: path.Direct, Addr: at}, Open: true})
	}
	w.answer(2, path.None)
	w.after(0)
	w.after(pathPatience)
	w.problem(ProblemNoPath, "and 45 more")
}

// TestPathMTU has paths carry less than their tunnels' MTU of 1420.
func TestPathMTU(t *testing.T) {
	w := newPathWorld(t)
	carries := func(mtus ...int) {
		w.in.Paths.MTU = make(map[mesh.ID]int)
		for i, mtu := range mtus {
			w.in.Paths.MTU[w.id(i+2)] = mtu
		}
		w.after(time.Minute)
	}
	for i := range w.peers {
		w.peers[i].MTU = 1420
	}
	carries(1420, 1420, 0)
	w.problem("")
	carries(1312, 1420, 0)
	w.problem(ProblemMTU, "the path to it carries packets of at most 1312 bytes, but the tunnel's MTU is 1420", "set wireguard.mtu: 1312 in the file of the node whose")
	carries(1312, 0, 0) // there is nothing to compare it with
	w.problem(ProblemMTU, "in the file of the node whose")
	carries(560, 1420)
	w.problem(ProblemMTU, "have the links on the way carry packets of 656 bytes")

	carries(1312, 1280)
	want := mesh.Problem{
		Kind: ProblemMTU, Node: w.in.Config.Name,
		Text:   "the paths to all 2 other nodes carry packets of at most 1312 bytes, but the tunnels' MTU is 1420: " + mtuMeanwhile,
		Advice: "set wireguard.mtu: 1312 in the file of this host, and run systemctl reload meshd there",
	}
	if len(w.told) != 1 || w.told[0] != want {
		t.Errorf("all paths carry less: got %+v, want %+v", w.told, want)
	}
	carries(1312, 1280, 1420)
	if len(w.told) != 2 {
		t.Errorf("two of three paths carry less: got %+v, want two problems", w.told)
	}

	carries(1312, 1420)
	w.answer(2, path.None) // what it carried once does not count
	w.after(0)
	w.problem("")
	w.answer(2, path.Direct)
	w.peers[0].MTU = 1312 // as the problem says
	carries(1312, 1420)
	w.problem("")

	w.in.View.Cluster.Overlay = append(w.in.View.Cluster.Overlay, netip.MustParsePrefix("fd00:4::/64"))
	w.peers[0].MTU = 1420
	carries(1264, 1420)
	w.problem(ProblemMTU, "have the links on the way carry packets of 1360 bytes: inside the tunnels there must be room for 1280")
}
