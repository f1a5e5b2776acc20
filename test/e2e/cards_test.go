// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/meshd/meshd/test/lab"
)

// strictFilter lets in only replies on the ports of the mesh, as a router does in front of
// a host, and counts those of gossip that come from one address.
const strictFilter = `
table inet strict {
	counter replies { }
	chain in {
		type filter hook input priority -5;
		iifname "eth0" ip saddr %s udp sport 7946 ct state established counter name replies
		iifname "eth0" udp dport { 7946, 51820 } ct state new drop
	}
}
`

// TestTwoCards has a host with two cards and a rule by which packets with the second one's
// address leave there. Others know it by that address, and take replies from no other one.
func TestTwoCards(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 2)
	a, b := m.nodes[0], m.nodes[1]
	second := netip.MustParseAddr("203.0.114.1")
	pair := fmt.Sprintf("link add second netns %d type veth peer name eth1 netns %d", m.lab.Outside().PID(), a.Host.PID())
	if out, err := exec.Command("ip", strings.Fields(pair)...).CombinedOutput(); err != nil {
		t.Fatalf("add the second card: %v: %s", err, out)
	}
	m.run(m.lab.Outside(), "ip", "link", "set", "second", "up")
	m.run(m.lab.Outside(), "ip", "addr", "add", "203.0.114.254/24", "dev", "second")
	m.run(m.lab.Outside(), "nft", "add", "element", "inet", "lab", "sources", "{ second . "+second.String()+" }")
	m.commands(a, []string{
		"ip link set eth1 up", "ip addr add " + second.String() + "/24 dev eth1",
		"ip rule add from " + second.String() + " lookup 100", "ip route add default via 203.0.114.254 dev eth1 table 100",
	})
	m.must(b.WriteFile("/run/strict.nft", fmt.Sprintf(strictFilter, second), 0o600))
	m.run(b, "nft", "-f", "/run/strict.nft")
	m.must(a.Configure(lab.Config(a.Name, nil, "  endpoint: "+second.String()+":51820", "gossip:", "  advertise: "+second.String()+":7946"), m.secret))
	m.must(b.Configure(lab.Config(b.Name, []string{second.String()}), m.secret))
	m.start(a, b)
	m.settle(settleLimit, a, b)
	m.connected(pingLimit, a, b)
	m.endpoint(b, a, netip.AddrPortFrom(second, 51820))
	m.eventually(settleLimit, func() error {
		words := strings.Fields(m.run(b, "nft", "list", "counter", "inet", "strict", "replies"))
		for i, w := range words {
			if n, err := strconv.Atoi(words[min(i+1, len(words)-1)]); w == "packets" && err == nil && n > 0 {
				return nil
			}
		}
		return fmt.Errorf("gossip from the address that was asked: got %q, want packets", words)
	})
}
