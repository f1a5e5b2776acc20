// SPDX-License-Identifier: Apache-2.0

package host

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/netcfg/filter"
)

const otherFirewall = `
table inet other {
	set nets { type ipv4_addr; flags interval; elements = { 100.64.0.0/10, 203.0.113.5-203.0.113.9, 240.0.0.0-255.255.255.255 } }
	set ports { type inet_service; flags interval; elements = { 1000-2000, 2001, 51820 } }
	chain in {
		type filter hook input priority 0
		iifname != "tailscale0" ip saddr 100.64.0.0/10 drop
		ip saddr @nets drop
		ip saddr != { 10.0.0.0/8, 192.168.7.0/24 } drop
		ip saddr 192.0.2.1-192.0.2.9 drop
		ip saddr 192.0.2.1 ip daddr 192.0.2.2 drop
		ip6 saddr { fd00::/8, 2001:db8::1 } drop
		ip saddr vmap { 10.0.0.0/8 : drop, 192.0.2.1 : accept }
		udp sport 51820 drop
		udp sport 1000-2000 drop
		udp sport 53 udp dport 54 drop
		udp dport @ports drop
		iifname { "a0", "b*" } drop
		ip saddr . udp dport { 192.0.2.1 . 53 } drop
	}
}
`

// TestOtherFirewall reads the rules that nft writes for conditions on addresses, ports and
// links.
func TestOtherFirewall(t *testing.T) {
	if !namespaced(t) {
		return
	}
	file := filepath.Join(t.TempDir(), "other.nft")
	if err := os.WriteFile(file, []byte(otherFirewall), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "nft -f "+file)
	run(t, "iptables-nft -A INPUT -p udp -m multiport --sports 1:5,9 -j DROP")
	tables, err := newKernel(t).Filters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const ip, udp = "meta nfproto ip ", "meta l4proto udp "
	want := map[string][]string{
		"other in": {
			"iifname != tailscale0 " + ip + "saddr 100.64.0.0/10 drop",
			ip + "saddr { 100.64.0.0-100.127.255.255, 203.0.113.5-203.0.113.9, 240.0.0.0-255.255.255.255 } drop",
			ip + "saddr != { 10.0.0.0-10.255.255.255, 192.168.7.0-192.168.7.255 } drop",
			ip + "saddr 192.0.2.1-255.255.255.255 saddr 0.0.0.0-192.0.2.9 drop",
			ip + "saddr 192.0.2.1/32 daddr 192.0.2.2/32 drop",
			"meta nfproto ip6 saddr { 2001:db8::1-2001:db8::1, fd00::-fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff } drop",
			ip + "saddr 10.0.0.0-10.255.255.255 drop", ip + "saddr 192.0.2.1-192.0.2.1 accept",
			udp + "th sport 51820 drop",
			udp + "th sport 1000-65535 th sport 0-2000 drop",
			udp + "th sport 53 th dport 54 drop",
			udp + "th dport { 1000-2000, 2001-2001, 51820-51820 } drop",
			"iifname { a0, b* } drop",
			ip + udp + "... drop",
		},
		"filter INPUT": {udp + "th sport { 1-5, 9 } drop"},
	}
	got := map[string][]string{}
	for _, table := range tables {
		for name, c := range table.Chains {
			for _, r := range c.Rules {
				if table.Backend != filter.Legacy {
					got[table.Name+" "+name] = append(got[table.Name+" "+name], r.String())
				}
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
}
