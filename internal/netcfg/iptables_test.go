// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg/filter"
)

// acceptsOf returns the accept rules of a node with pods, in IPv4 only.
func acceptsOf(s Settings) []Accept {
	prefixes := func(list ...string) []netip.Prefix {
		var out []netip.Prefix
		for _, p := range list {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	s.Interface, s.ListenPort, s.GossipPort = "meshd0", 51820, 7946
	s.Uplinks = []Uplink{{Link: "eth0", Source: netip.MustParsePrefix("192.168.1.1/24")}}
	return Desired(mesh.Topology{
		Addresses: []netip.Addr{netip.MustParseAddr("10.4.0.1")}, PodCIDRs: prefixes("10.42.0.0/24"),
		Inside: prefixes("10.4.0.0/16", "10.42.0.0/16"), Guarded: prefixes("10.4.0.0/16", "10.42.0.0/16"),
	}, s).Accepts
}

// xt returns a table of iptables from the output of iptables -S.
func xt(text string) filter.Table {
	t := filter.Parse(filter.XTNFT, "ip", "filter", text)
	t.Program = "iptables-nft"
	return t
}

// follow applies changes to a table.
func follow(t *testing.T, table filter.Table, changes []AcceptChange) filter.Table {
	t.Helper()
	e := edit{table: clone(table)}
	for _, c := range changes {
		rules := e.table.Chains[c.Chain].Rules
		if !c.Remove {
			at := c.Before - 1
			if c.Before == 0 {
				at = len(rules)
			}
			added := filter.Parse(filter.XTNFT, "ip", "filter", "-A X "+c.Match+" -m comment --comment "+c.Comment+" -j ACCEPT").Chains["X"].Rules
			e.set(c.Chain, append(rules[:at:at], append(added, rules[at:]...)...))
			continue
		}
		for i, r := range rules {
			if r.Comment == c.Comment {
				e.remove(c.Chain, i)
				break
			}
		}
	}
	return e.table
}

var hashes = regexp.MustCompile(`(meshd:)[0-9a-f]{12}`)

// changeLines formats changes, with the same placeholder for each hash.
func changeLines(changes []AcceptChange) []string {
	var out []string
	for _, c := range changes {
		line := strings.TrimSuffix(hashes.ReplaceAllString(c.String(), "${1}#"), " -m comment --comment meshd:# -j ACCEPT")
		out = append(out, strings.TrimPrefix(line, "+ iptables-nft "))
	}
	return out
}

func TestDiffAccepts(t *testing.T) {
	const state = "-m conntrack --ctstate RELATED,ESTABLISHED"
	tests := []struct {
		name  string
		rules string
		want  []string
	}{
		{"open", "-P INPUT ACCEPT\n-P FORWARD ACCEPT", nil},
		{"policies", "-P INPUT DROP\n-P FORWARD DROP", []string{
			"-A FORWARD -i meshd0", "-A FORWARD -o meshd0", "-A FORWARD -i kube-bridge", "-A FORWARD -o kube-bridge " + state + ",DNAT",
			"-A INPUT -p udp --dport 51820", "-A INPUT -p udp --dport 7946", "-A INPUT -p tcp --dport 7946", "-A INPUT " + state,
			"-A INPUT -i meshd0 -s 10.4.0.0/16", "-A INPUT -i meshd0 -s 10.42.0.0/16", "-A INPUT -i kube-bridge",
		}},
		{"other rules accept some packets", "-P INPUT DROP\n-A INPUT " + state + " -j ACCEPT\n-A INPUT -s 10.0.0.0/8 -j ACCEPT\n-A INPUT -p udp -j ACCEPT\n-P FORWARD ACCEPT", []string{
			"-A INPUT -p tcp --dport 7946",
		}},
		{"before the final reject", "-P FORWARD ACCEPT\n-P INPUT ACCEPT\n-A INPUT -p udp -j ACCEPT\n-A INPUT -s 10.0.0.0/8 -j ACCEPT\n-A INPUT " + state + " -j ACCEPT\n-A INPUT -j REJECT", []string{
			"-I INPUT 4 -p tcp --dport 7946",
		}},
		{"before the uplink is closed", "-P FORWARD ACCEPT\n-P INPUT ACCEPT\n-A INPUT -i lo -j ACCEPT\n-A INPUT -p tcp -i eth0 -m tcp --dport 7000:8000 -j DROP", []string{
			"-I INPUT 2 -p tcp --dport 7946",
		}},
		{"after NetworkPolicy", "-P FORWARD DROP\n-A FORWARD -d 10.42.0.7/32 -j DROP\n-A FORWARD -i kube-bridge -j ACCEPT\n-A FORWARD -o kube-bridge -j ACCEPT", []string{
			"-A FORWARD -i meshd0", "-A FORWARD -o meshd0",
		}},
		{"Docker", "-P FORWARD DROP\n-N DOCKER-USER\n-N DOCKER\n-A FORWARD -j DOCKER-USER\n-A FORWARD -o docker0 -j DOCKER\n-A FORWARD -i kube-bridge -j ACCEPT\n-A FORWARD -o kube-bridge -j ACCEPT\n-A DOCKER-USER -i eth0 -s 192.0.2.7/32 -j DROP\n-A DOCKER-USER -j RETURN", []string{
			"-I DOCKER-USER 2 -i meshd0", "-I DOCKER-USER 3 -o meshd0",
		}},
		{"Docker's chain comes too late", "-P FORWARD DROP\n-N DOCKER-USER\n-A FORWARD -i kube-bridge -j ACCEPT\n-A FORWARD -o kube-bridge -j ACCEPT\n-A FORWARD -j DROP\n-A FORWARD -j DOCKER-USER", []string{
			"-I FORWARD 3 -i meshd0", "-I FORWARD 4 -o meshd0",
		}},
		{"ufw", "-P INPUT DROP\n-P FORWARD ACCEPT\n-N before\n-N local\n-N user\n-A INPUT -j before\n-A before " + state + " -j ACCEPT\n-A before -j local\n-A before -s 10.0.0.0/8 -j ACCEPT\n-A before -j user\n" +
			"-A local -m addrtype --dst-type LOCAL -j RETURN\n-A local -m addrtype --dst-type MULTICAST -j RETURN\n-A local -m limit --limit 3/min -j LOG\n-A local -j DROP\n-A user -p tcp -m tcp --dport 7946 -j ACCEPT", []string{
			"-A INPUT -p udp --dport 51820", "-A INPUT -p udp --dport 7946",
		}},
		{"a rule that is no longer desired", "-P FORWARD ACCEPT\n-P INPUT ACCEPT\n-A INPUT -p udp -m udp --dport 51821 -m comment --comment meshd:0123456789ab -j ACCEPT", []string{
			"- iptables-nft rule meshd:# in INPUT",
		}},
		{"not understood", "-P FORWARD DROP\n-A FORWARD -m set --match-set friends src -j ACCEPT\n-A FORWARD -i kube-bridge -j ACCEPT\n-A FORWARD -o kube-bridge -j ACCEPT", []string{
			"-A FORWARD -i meshd0", "-A FORWARD -o meshd0",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			accepts := acceptsOf(Settings{Bridge: "kube-bridge"})
			table := xt(tt.rules)
			changes := diffAccepts([]filter.Table{table}, accepts, true)
			if diff := cmp.Diff(tt.want, changeLines(changes)); diff != "" {
				t.Errorf("changes (-want +got):\n%s", diff)
			}
			after := follow(t, table, changes)
			for _, b := range BlockingChains([]filter.Table{after}, accepts) {
				for _, a := range b.Accepts {
					for _, p := range a.Packets {
						if v := after.Evaluate(b.Chain, p); v != filter.Accepted {
							t.Errorf("%s %s: packet %+v: got %s, want accepted", b.Chain, a.Match(), p, v)
						}
					}
				}
			}
			if again := diffAccepts([]filter.Table{after}, accepts, true); again != nil {
				t.Errorf("changes after the changes: got %q, want none", changeLines(again))
			}
			gone := follow(t, after, diffAccepts([]filter.Table{after}, nil, true))
			for name, c := range gone.Chains {
				for _, r := range c.Rules {
					if isOurs(r) {
						t.Errorf("our rule in %s after all were removed: %+v", name, r)
					}
				}
			}
		})
	}
}

// TestDiffAcceptsMoves adds a drop rule before our rules.
func TestDiffAcceptsMoves(t *testing.T) {
	accepts := acceptsOf(Settings{})
	open := xt("-P INPUT ACCEPT\n-P FORWARD DROP")
	table := follow(t, open, diffAccepts([]filter.Table{open}, accepts, true))
	e := edit{table: table}
	e.set("FORWARD", append([]filter.Rule{{Action: filter.Drop}}, table.Chains["FORWARD"].Rules...))
	changes := diffAccepts([]filter.Table{e.table}, accepts, true)
	want := []string{"- iptables-nft rule meshd:# in FORWARD", "-I FORWARD 1 -i meshd0", "- iptables-nft rule meshd:# in FORWARD", "-I FORWARD 2 -o meshd0"}
	if diff := cmp.Diff(want, changeLines(changes)); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	if again := diffAccepts([]filter.Table{follow(t, e.table, changes)}, accepts, true); again != nil {
		t.Errorf("changes after the changes: got %q, want none", changeLines(again))
	}
}

// TestDiffAcceptsLeaves checks what is not changed: rules that are no longer desired,
// without pruning, and all rules, if the program is not installed.
func TestDiffAcceptsLeaves(t *testing.T) {
	const stale = "-P INPUT ACCEPT\n-A INPUT -i meshd9 -m comment --comment meshd:0123456789ab -j ACCEPT"
	if got := diffAccepts([]filter.Table{xt(stale)}, acceptsOf(Settings{}), false); got != nil {
		t.Errorf("changes without pruning: got %q, want none", changeLines(got))
	}
	table := xt("-P FORWARD DROP")
	table.Program = ""
	if got := diffAccepts([]filter.Table{table}, acceptsOf(Settings{}), true); got != nil {
		t.Errorf("changes without iptables: got %q, want none", changeLines(got))
	}
	problems := Problems(State{Filters: []filter.Table{table}}, State{Accepts: acceptsOf(Settings{})})
	want := []mesh.Problem{{
		Kind:   ProblemFirewall,
		Text:   "the chain FORWARD of iptables-nft drops packets from the mesh, to the mesh",
		Advice: "install iptables-nft (apt install iptables), so that meshd can add the rules itself; or run: iptables-nft -I FORWARD -i meshd0 -j ACCEPT; iptables-nft -I FORWARD -o meshd0 -j ACCEPT",
	}}
	if diff := cmp.Diff(want, problems); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}
