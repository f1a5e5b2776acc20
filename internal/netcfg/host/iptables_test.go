// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/netcfg/filter"
	"github.com/meshd/meshd/internal/netcfg/netcfgtest"
)

// iptablesHere returns the programs of iptables whose tables this kernel supports.
func iptablesHere(t *testing.T) []string {
	t.Helper()
	all := []string{"iptables-nft", "ip6tables-nft"}
	for _, l := range legacies {
		program := filter.Legacy.Program(l.family)
		if exec.Command(program, "-S").Run() == nil { // this also creates the table
			all = append(all, program)
		}
	}
	return all
}

// TestAcceptsOnHost makes each kind of iptables drop everything, and adds our rules.
// After our rules are removed, all tables are as before.
func TestAcceptsOnHost(t *testing.T) {
	if !namespaced(t) {
		return
	}
	h := newKernel(t)
	var want netcfg.State
	s := settings()
	s.Uplinks = []netcfg.Uplink{{Link: "eth0", Source: netip.MustParsePrefix("192.168.1.1/24")}}
	for _, a := range netcfg.Desired(netcfgtest.IPv4(), s).Accepts {
		want.Accepts = append(want.Accepts, a)
		if a.Family = "ip6"; a.Source.IsValid() || len(a.Packets) == 0 {
			continue // specific to IPv4
		}
		want.Accepts = append(want.Accepts, a)
	}
	for _, program := range iptablesHere(t) {
		t.Run(program, func(t *testing.T) {
			run(t, program+" -P INPUT DROP")
			run(t, program+" -P FORWARD DROP")
			run(t, program+" -A FORWARD -i eth7 -j DROP")
			before := run(t, program+" -S")
			mustReconcile(t, h, want)
			if after := run(t, program+" -S"); strings.Count(after, "--comment \"meshd:") < 8 {
				t.Errorf("rules: got %s, want our rules among them", after)
			}
			checkAccepted(t, h, want)

			run(t, program+" -F INPUT")
			mustReconcile(t, h, want)
			checkAccepted(t, h, want)

			if _, err := h.Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, run(t, program+" -S")); diff != "" {
				t.Errorf("rules after ours were removed (-before +after):\n%s", diff)
			}
			run(t, program+" -P INPUT ACCEPT")
			run(t, program+" -P FORWARD ACCEPT")
		})
	}
}

// checkAccepted checks that the host accepts all sample packets, and that the next plan
// is empty.
func checkAccepted(t *testing.T, h *Kernel, want netcfg.State) {
	t.Helper()
	got, err := h.Observe(t.Context(), want)
	if err != nil || got.FilterErr != nil {
		t.Fatal(err, got.FilterErr)
	}
	if changes := diff(got, want).Accepts; len(changes) > 0 {
		t.Errorf("changes: got %q, want none", changes)
	}
	for _, b := range netcfg.BlockingChains(got.Filters, want.Accepts) {
		for _, a := range b.Accepts {
			for _, p := range a.Packets {
				if v := b.Table.Evaluate(b.Chain, p); v != filter.Accepted {
					t.Errorf("%s %s %s: %+v is %s, want accepted", b.Table.Program, b.Chain, a.Match(), p, v)
				}
			}
		}
	}
}

// TestLegacyCounters checks that packets, which change counters, don't count as a change
// of the table.
func TestLegacyCounters(t *testing.T) {
	if !namespaced(t) {
		return
	}
	here := iptablesHere(t)
	for _, l := range legacies {
		program := filter.Legacy.Program(l.family)
		if !slices.Contains(here, program) {
			continue
		}
		sum := func() string {
			t.Helper()
			e, sum, err := l.entries("filter")
			if err != nil {
				t.Fatal(err)
			}
			if got, want := l.policies(e).Chains["FORWARD"].Drops, strings.Contains(run(t, program+" -S FORWARD"), "-P FORWARD DROP"); got != want {
				t.Errorf("policy of %s: drops %t, want %t", program, got, want)
			}
			return fmt.Sprintf("%x", sum)
		}
		run(t, program+" -A INPUT -m limit --limit 5/second -j ACCEPT")
		before := sum()
		run(t, "ping -c 1 -w 30 "+map[string]string{"ip": "127.0.0.1", "ip6": "::1"}[l.family])
		if counted := run(t, program+" -v -S INPUT"); strings.Contains(counted, "-j ACCEPT -c 0 0") {
			t.Fatalf("nothing was counted: %s", counted)
		}
		if after := sum(); after != before {
			t.Errorf("%s: a packet changed the table", program)
		}
		run(t, program+" -P FORWARD DROP")
		if after := sum(); after == before {
			t.Errorf("%s: a policy did not change the table", program)
		}
	}
}

// TestLegacyWithoutItsProgram checks that an unchanged table is read without running a
// program, and that the policies are known even if the program is not installed.
func TestLegacyWithoutItsProgram(t *testing.T) {
	if !namespaced(t) {
		return
	}
	here := iptablesHere(t)
	for _, l := range legacies {
		program := filter.Legacy.Program(l.family)
		if !slices.Contains(here, program) {
			continue
		}
		run(t, program+" -P FORWARD DROP")
		run(t, program+" -A FORWARD -i eth7 -j ACCEPT")
	}
	legacyTables := func(h *Kernel) []filter.Table {
		t.Helper()
		tables, err := h.Filters(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return slices.DeleteFunc(tables, func(t filter.Table) bool { return t.Backend != filter.Legacy })
	}
	h := newKernel(t)
	before := legacyTables(h)
	t.Setenv("PATH", "")
	if d := cmp.Diff(before, legacyTables(h)); d != "" {
		t.Errorf("tables after their programs are gone (-before +after):\n%s", d)
	}
	got := legacyTables(newKernel(t))
	var want []filter.Table
	for _, b := range before {
		want = append(want, filter.Table{Backend: filter.Legacy, Family: b.Family, Name: "filter", Chains: map[string]filter.Chain{
			"INPUT": {Hook: "input"}, "FORWARD": {Hook: "forward", Drops: true},
		}})
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("tables without their programs (-want +got):\n%s", d)
	}
}
