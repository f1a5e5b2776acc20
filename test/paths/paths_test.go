// SPDX-License-Identifier: Apache-2.0

// Package paths has nodes behind routers of all kinds find paths to each other, with real
// packets: the agents of package path/agent, without daemons and without tunnels. WireGuard
// is a value here, and gossip a function call.
package paths

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/meshd/meshd/test/lab"
)

func TestMain(m *testing.M) {
	lab.Main()
	goleak.VerifyTestMain(m)
}

// limit is long, since what is waited for comes on a busy machine, too.
const limit = 2 * time.Minute

// kind is a way to be connected to the internet.
type kind struct {
	name string
	site lab.SiteOptions // without an underlay, the host is a lone one
	open bool            // strangers reach it
	// hidden is a mapping that is another one for each peer, so that nobody can say where
	// to send to.
	hidden bool
	six    bool // it can be told where it is by IPv6
}

func home(r lab.Router) lab.SiteOptions { return lab.SiteOptions{Underlay: lab.Home, Router: r} }

var kinds = []kind{
	{name: "public", open: true, six: true},
	{name: "firewall", site: lab.SiteOptions{Underlay: lab.Routed, Router: lab.Router{Firewall4: true}}},
	{name: "preserving", site: home(lab.Router{Mapping: lab.PortPreserving})},
	{name: "open input", site: home(lab.Router{Mapping: lab.PortPreserving, OpenInput: true})},
	{name: "restricted", site: home(lab.Router{})},
	{name: "full cone", site: home(lab.Router{FullCone: true}), open: true},
	{name: "carrier", site: home(lab.Router{Mapping: lab.PortPreserving, Carrier: &lab.Router{}})},
	{name: "dependent", site: home(lab.Router{Mapping: lab.PortDependent}), hidden: true},
	{
		name:   "dependent+IPv6",
		site:   lab.SiteOptions{Underlay: lab.Home, GUA: true, Router: lab.Router{Mapping: lab.PortDependent, Firewall6: true}},
		hidden: true, six: true,
	},
}

// meets reports whether two nodes have a direct path: if one of them can't be told where
// the other one is, it must let that one in all the same.
func meets(a, b kind) bool {
	return a.six && b.six || (!a.hidden || b.open) && (!b.hidden || a.open)
}

// TestPairs has two nodes of each kind, and each of the first ones looks for paths to all
// of the second ones at once.
func TestPairs(t *testing.T) {
	if testing.Short() || os.Getuid() != 0 {
		t.Skip("needs root, and some forty namespaces")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*limit)
	defer cancel()
	n := newInternet(t)
	servers := []*node{n.node(ctx, t, "server 1", lab.SiteOptions{}), n.node(ctx, t, "server 2", lab.SiteOptions{})}
	var left, right []*node
	for _, k := range kinds {
		left = append(left, n.node(ctx, t, k.name+" 1", k.site))
		right = append(right, n.node(ctx, t, k.name+" 2", k.site))
	}
	for _, x := range slices.Concat(left, right) {
		for _, s := range servers {
			x.know(s, s.own()...)
			s.know(x) // learns where it is
		}
	}
	n.start(ctx, t)
	for i, k := range kinds {
		for _, x := range []*node{left[i], right[i]} {
			x.await(ctx, t, "learn where it is", func() bool {
				return x.provedTo(servers[0]) && x.provedTo(servers[1]) && len(x.seen(4)) > 0 && (!k.six || len(x.seen(6)) > 0)
			})
		}
	}
	for i, x := range left {
		for j, y := range right {
			x.know(y, y.candidates(kinds[j].open)...)
			y.know(x, x.candidates(kinds[i].open)...)
		}
	}
	began := time.Now()
	n.tellPeers()
	for i, x := range left {
		for j, y := range right {
			if meets(kinds[i], kinds[j]) {
				x.await(ctx, t, "meet "+y.name, func() bool { return x.provedTo(y) && y.provedTo(x) })
			}
		}
	}
	t.Logf("all that can meet have met after %v", time.Since(began).Round(100*time.Millisecond))
	for _, x := range slices.Concat(left, right) {
		x.await(ctx, t, "end its attempts", func() bool { return time.Since(x.called()) > attempt })
	}
	for i, x := range left {
		for j, y := range right {
			if want, got := meets(kinds[i], kinds[j]), x.provedTo(y) || y.provedTo(x); got != want {
				t.Errorf("%s and %s: met %t, want %t", x.name, y.name, got, want)
			}
		}
	}
	t.Log("\n" + table(left, right))
}

// attempt is longer than two nodes punch; the next attempt follows after minutes.
const attempt = 6 * time.Second

// table shows who has met whom.
func table(left, right []*node) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-18s", "")
	for _, y := range right {
		fmt.Fprintf(&b, "%-18s", y.name)
	}
	for _, x := range left {
		fmt.Fprintf(&b, "\n%-18s", x.name)
		for _, y := range right {
			fmt.Fprintf(&b, "%-18s", x.pathTo(y).Kind)
		}
	}
	return b.String()
}
