// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"maps"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

// TestModes changes the mode of a running mesh file by file, through all modes and back
// to the first one, while pods exchange packets. Afterwards the hosts are as before.
func TestModes(t *testing.T) { // not parallel: six hosts are a load
	v, _ := newSix(t, cluster(1, mesh.ModeFull)...)
	v.live()
	v.full(v.nodes...)
	v.encrypted()
	a, b, lone := v.members("a"), v.members("b"), v.node("c")
	talks := []conversation{
		v.converseEach(slowPeriod, v.pods[a[1]], v.pods[b[1]]),
		v.converseEach(slowPeriod, v.pods[a[2]], v.pods[lone]),
		v.converseEach(slowPeriod, v.pods[a[0]], v.pods[a[1]]),
	}
	before := v.state()

	for i, step := range []struct {
		mode mesh.Mode
		more string
		// tunnels are how many peers the lone node has, and all nodes together.
		lone, all int
		then      func(v *village)
	}{
		{mode: mesh.ModeLocation, lone: 2, all: 6},
		{mode: mesh.ModeLocation, more: "  gateways: 2", lone: 4, all: 16, then: (*village).loseOneOfTwo},
		{mode: mesh.ModeCross, lone: 5, all: 22},
		{mode: mesh.ModeFull, lone: 5, all: 30},
	} {
		t.Run(fmt.Sprintf("%d %s%s", i+2, step.mode, step.more), func(t *testing.T) {
			v := v.in(t)
			lines := cluster(i+2, step.mode, step.more)
			for j, n := range v.nodes {
				v.configure(n, lines...)
				v.must(n.Reload())
				if j == 0 {
					v.adopt(uint64(i + 2)) // from the only file that has it
				}
			}
			v.eventually(settleLimit, func() error { return v.tunnels(lone, step.lone, step.all) })
			v.full(v.nodes...)
			if step.then != nil {
				step.then(v)
			}
			for _, talk := range talks {
				talk.goesOn(t)
			}
			v.encrypted()
		})
	}
	v.eventually(settleLimit, func() error {
		if diff := cmp.Diff(before, v.state()); diff != "" {
			return fmt.Errorf("hosts after all modes (-before +after):\n%s", diff)
		}
		return nil
	})
	var ends sync.WaitGroup // each may wait for what was lost
	for _, talk := range talks {
		t.Logf("%s: longest pause %s", talk.name, talk.LongestGap())
		ends.Go(func() { talk.Stop() })
	}
	ends.Wait()
}

// loseOneOfTwo stops the gateway that carries two of three nodes of a location. Its
// traffic moves to the other gateway, and no other traffic moves.
func (v *village) loseOneOfTwo() {
	v.t.Helper()
	lone := v.node("c")
	carriers := func() map[*lab.Node]*lab.Node {
		through := map[*lab.Node]*lab.Node{}
		for _, n := range v.without(lone) {
			through[n] = v.carrier(lone, v.overlay[n][0])
		}
		return through
	}
	before := carriers()
	var gone *lab.Node
	for _, n := range v.members("a") {
		if before[n] != n {
			gone = before[n]
		}
	}
	v.must(gone.Cut(v.ctx))
	v.full(v.without(gone)...)
	for n, through := range carriers() {
		if moved := through != before[n]; n != gone && moved != (before[n] == gone) {
			v.t.Errorf("gateway of %s: got %s, was %s before %s was lost", n.Name, nameOf(through), nameOf(before[n]), gone.Name)
		}
	}
	v.must(gone.Restore(v.ctx))
	v.settle(settleLimit, v.nodes...)
	v.full(v.nodes...)
}

// tunnels compares numbers of peers.
func (v *village) tunnels(lone *lab.Node, wantLone, wantAll int) error {
	total := 0
	for _, n := range v.nodes {
		total += len(v.peers(n))
	}
	if got := len(v.peers(lone)); got != wantLone || total != wantAll {
		return fmt.Errorf("tunnels: got %d at %s and %d in all, want %d and %d", got, lone.Name, total, wantLone, wantAll)
	}
	return nil
}

// state returns what is configured on all hosts, including allowed IPs.
func (v *village) state() map[string]map[string]string {
	v.t.Helper()
	all := map[string]map[string]string{}
	for _, n := range v.nodes {
		state := v.hostState(n.Host)
		for p, allowed := range v.peers(n) {
			state["peer "+p.Name] = fmt.Sprint(allowed)
		}
		all[n.Name] = maps.Clone(state)
	}
	return all
}
