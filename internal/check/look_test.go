// SPDX-License-Identifier: Apache-2.0

package check

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/netcfg/filter"
)

// nftForward returns a chain with the given rules and the policy drop.
const nftForward = `table inet filter {
	set friends { type ipv4_addr; elements = { 10.42.1.2 } }
	chain other { iifname "meshd0" accept; }
	chain forward { type filter hook forward priority 0; policy drop; %s
	}
}
`

// TestLookNFT adds rules to the kernel, and evaluates them as read back over netlink.
func TestLookNFT(t *testing.T) {
	forwarded := filter.Packet{
		In: "meshd0", Out: "kube-bridge", Protocol: "tcp", Port: 80,
		Source: netip.MustParseAddr("10.42.1.2"), Destination: netip.MustParseAddr("10.42.0.2"),
	}
	forwarded6 := forwarded
	forwarded6.Source, forwarded6.Destination = netip.MustParseAddr("fd42:0:0:1::2"), netip.MustParseAddr("fd42::2")
	answer := forwarded
	answer.Established = true
	tests := []struct {
		name   string
		rules  string
		packet filter.Packet
		want   filter.Verdict
	}{
		{"none", "", forwarded, filter.Dropped},
		{"link", `iifname "meshd0" accept`, forwarded, filter.Accepted},
		{"another link", `iifname "meshd1" accept`, forwarded, filter.Dropped},
		{"any but another link", `iifname != "eth0" accept`, forwarded, filter.Accepted},
		{"links", `oifname { "docker0", "kube-bridge" } accept`, forwarded, filter.Accepted},
		{"none of these links", `oifname != { "docker0", "kube-bridge" } accept`, forwarded, filter.Dropped},
		{"any ending", `iifname "mesh*" accept`, forwarded, filter.Accepted},
		{"link by index", `iif "lo" accept`, forwarded, filter.Dropped},
		{"short range of addresses", `ip saddr 10.42.0.0/16 accept`, forwarded, filter.Accepted},
		{"odd range of addresses", `ip saddr 10.42.0.0/15 ip daddr 10.42.0.0/23 accept`, forwarded, filter.Accepted},
		{"odd range of other addresses", `ip saddr 10.44.0.0/15 accept`, forwarded, filter.Dropped},
		{"addresses of the other family", `ip6 saddr fd42::/16 accept`, forwarded, filter.Dropped},
		{"IPv6 addresses", `ip6 saddr fd42::/48 ip6 daddr fd42::/16 accept`, forwarded6, filter.Accepted},
		{"other IPv6 addresses", `ip6 saddr fd43::/60 accept`, forwarded6, filter.Dropped},
		{"named set", `ip saddr @friends accept`, forwarded, filter.Accepted},
		{"port", `tcp dport 80 accept`, forwarded, filter.Accepted},
		{"ports", `tcp dport { 80, 443 } accept`, forwarded, filter.Accepted},
		{"range of ports", `tcp dport 79-81 accept`, forwarded, filter.Accepted},
		{"range of other ports", `tcp dport 81-90 accept`, forwarded, filter.Dropped},
		{"another protocol's port", `udp dport 80 accept`, forwarded, filter.Dropped},
		{"protocols", `meta l4proto { icmp, ipv6-icmp } accept`, forwarded, filter.Dropped},
		{"answers, a new connection", `ct state established,related accept`, forwarded, filter.Dropped},
		{"answers, an answer", `ct state established,related accept`, answer, filter.Accepted},
		{"map of states, a new connection", `ct state vmap { established : accept, related : accept, invalid : drop }`, forwarded, filter.Dropped},
		{"map of states, an answer", `ct state vmap { established : accept, related : accept, invalid : drop }`, answer, filter.Accepted},
		{"map of links to chains", `iifname vmap { "meshd0" : jump other, "eth0" : drop }`, forwarded, filter.Accepted},
		{"marked", `meta mark & 0x4000 == 0x4000 accept`, forwarded, filter.Dropped},
		{"not marked", `meta mark & 0x4000 == 0 accept`, forwarded, filter.Accepted},
		{"jump", "jump other", forwarded, filter.Accepted},
		{"counted and logged", `counter log prefix "x" accept`, forwarded, filter.Accepted},
		{"rejected before", "reject; accept", forwarded, filter.Dropped},
		{"may be accepted", "fib daddr type local accept", forwarded, filter.Unsure},
		{"limited", "limit rate 10/second accept", forwarded, filter.Unsure},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var f Facts
			err := inNamespace(func() error {
				cmd := exec.Command("nft", "-f", "-")
				cmd.Stdin = strings.NewReader(fmt.Sprintf(nftForward, strings.ReplaceAll(tt.rules, ";", "\n")))
				if out, err := cmd.CombinedOutput(); err != nil {
					return fmt.Errorf("%w: %s", err, out)
				}
				return errors.Join(f.lookLinks(), f.lookFilters(t.Context(), config.Config{}))
			})
			if err != nil {
				t.Fatal(err)
			}
			if len(f.Filters) != 1 {
				t.Fatalf("tables: got %+v, want one", f.Filters)
			}
			if got := f.Filters[0].Evaluate("forward", tt.packet); got != tt.want {
				t.Errorf("verdict: got %s, want %s; rules %+v", got, tt.want, f.Filters[0].Chains["forward"].Rules)
			}
		})
	}
}

// TestLookIPTables adds rules with both kinds of iptables, in both families.
func TestLookIPTables(t *testing.T) {
	for _, program := range []string{"iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"} {
		t.Run(program, func(t *testing.T) {
			var f Facts
			err := inNamespace(func() error {
				for _, args := range []string{"-P FORWARD DROP", "-A FORWARD -i meshd0 -j ACCEPT"} {
					if out, err := exec.Command(program, strings.Fields(args)...).CombinedOutput(); err != nil {
						return fmt.Errorf("%w: %s", err, out)
					}
				}
				return errors.Join(f.lookLinks(), f.lookFilters(t.Context(), config.Config{}))
			})
			if err != nil {
				t.Fatal(err)
			}
			if len(f.Filters) != 1 || f.Filters[0].Program != program {
				t.Fatalf("tables: got %+v, want one of %s", f.Filters, program)
			}
			for in, want := range map[string]filter.Verdict{"meshd0": filter.Accepted, "eth0": filter.Dropped} {
				if got := f.Filters[0].Evaluate("FORWARD", filter.Packet{In: in}); got != want {
					t.Errorf("verdict on packets from %s: got %s, want %s", in, got, want)
				}
			}
		})
	}
}
