// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// forwarded is a packet from the mesh to a pod.
var forwarded = Packet{
	In: "meshd0", Out: "kube-bridge", Protocol: "tcp", Port: 80, SourcePort: 40005,
	Source: netip.MustParseAddr("10.42.1.2"), Destination: netip.MustParseAddr("10.42.0.2"),
}

func TestJudge(t *testing.T) {
	answer := forwarded
	answer.Established = true
	tests := []struct {
		name   string
		rules  string
		packet Packet
		want   Verdict
	}{
		{"no rules", "-P FORWARD ACCEPT", forwarded, Accepted},
		{"policy", "-P FORWARD DROP", forwarded, Dropped},
		{"accepted by incoming link", "-P FORWARD DROP\n-A FORWARD -i meshd0 -j ACCEPT", forwarded, Accepted},
		{"accepted by a pattern of links", "-P FORWARD DROP\n-A FORWARD -o kube+ -j ACCEPT", forwarded, Accepted},
		{"another link", "-P FORWARD DROP\n-A FORWARD -i eth0 -j ACCEPT", forwarded, Dropped},
		{"not another link", "-P FORWARD DROP\n-A FORWARD ! -i eth0 -j ACCEPT", forwarded, Accepted},
		{"addresses", "-P FORWARD DROP\n-A FORWARD -s 10.42.0.0/16 -d 10.42.0.0/16 -j ACCEPT", forwarded, Accepted},
		{"one of two conditions", "-P FORWARD DROP\n-A FORWARD -s 10.42.0.0/16 -d 10.43.0.0/16 -j ACCEPT", forwarded, Dropped},
		{"port", "-P FORWARD DROP\n-A FORWARD -p tcp -m tcp --dport 80 -j ACCEPT", forwarded, Accepted},
		{"another protocol", "-P FORWARD DROP\n-A FORWARD -p udp -m udp --dport 80 -j ACCEPT", forwarded, Dropped},
		{"ports", "-P FORWARD DROP\n-A FORWARD -p tcp -m multiport --dports 22,79:81 -j ACCEPT", forwarded, Accepted},
		{"replies only, a new connection", "-P FORWARD DROP\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", forwarded, Dropped},
		{"replies only, a reply", "-P FORWARD DROP\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", answer, Accepted},
		{"packets that kube-proxy has marked", "-P FORWARD DROP\n-A FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT", forwarded, Dropped},
		{"rejected at the end", "-P FORWARD ACCEPT\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited", forwarded, Dropped},
		{"accepted before", "-P FORWARD ACCEPT\n-A FORWARD -i meshd0 -j ACCEPT\n-A FORWARD -j REJECT", forwarded, Accepted},
		{"accepted too late", "-P FORWARD ACCEPT\n-A FORWARD -j DROP\n-A FORWARD -i meshd0 -j ACCEPT", forwarded, Dropped},
		{"jump", "-P FORWARD DROP\n-N X\n-A FORWARD -i meshd0 -j X\n-A X -j ACCEPT", forwarded, Accepted},
		{"jump and return", "-P FORWARD DROP\n-N X\n-A FORWARD -j X\n-A FORWARD -j ACCEPT\n-A X -j RETURN\n-A X -j DROP", forwarded, Accepted},
		{"goto without return", "-P FORWARD DROP\n-N X\n-A FORWARD -g X\n-A FORWARD -j ACCEPT\n-A X -i eth0 -j ACCEPT", forwarded, Dropped},
		{"jump that is not taken", "-P FORWARD DROP\n-N X\n-A FORWARD -i eth0 -j X\n-A X -j ACCEPT", forwarded, Dropped},
		{"loop of jumps", "-P FORWARD DROP\n-N X\n-A FORWARD -j X\n-A X -j X", forwarded, Unsure},
		{"log", "-P FORWARD DROP\n-A FORWARD -j LOG --log-prefix \"-j ACCEPT \"", forwarded, Dropped},
		{"comment", `-P FORWARD DROP` + "\n" + `-A FORWARD -i meshd0 -m comment --comment "! -i \"x" -j ACCEPT`, forwarded, Accepted},
		{"not addressed to this host", "-P FORWARD DROP\n-N X\n-A FORWARD -j X\n-A FORWARD -i meshd0 -j ACCEPT\n-A X -m addrtype --dst-type UNICAST -j RETURN\n-A X -j DROP", forwarded, Accepted},
		{"may be accepted", "-P FORWARD DROP\n-A FORWARD -m set --match-set friends src -j ACCEPT", forwarded, Unsure},
		{"may be accepted after a jump", "-P FORWARD DROP\n-N X\n-A FORWARD -j X\n-A X -m set --match-set friends src -j ACCEPT\n-A X -j DROP", forwarded, Unsure},
		{"may be dropped", "-P FORWARD ACCEPT\n-A FORWARD -m set --match-set foes src -j DROP", forwarded, Accepted},
		{"source port", "-P FORWARD ACCEPT\n-A FORWARD -p tcp -m tcp --sport 40000:40010 -j DROP", forwarded, Dropped},
		{"another source port", "-P FORWARD ACCEPT\n-A FORWARD -p tcp -m multiport --sports 1:1023,50000 -j DROP", forwarded, Accepted},
		{"range of addresses", "-P FORWARD ACCEPT\n-A FORWARD -m iprange --src-range 10.42.0.9-10.42.1.2 -j DROP", forwarded, Dropped},
		{"not in a range of addresses", "-P FORWARD ACCEPT\n-A FORWARD -m iprange ! --dst-range 10.42.0.1-10.42.0.2 -j DROP", forwarded, Accepted},
		{"not understood, but for another link", "-P FORWARD DROP\n-A FORWARD -i eth0 -m set --match-set friends src -j ACCEPT", forwarded, Dropped},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Parse(XTNFT, "ip", "filter", tt.rules).Evaluate("FORWARD", tt.packet); got != tt.want {
				t.Errorf("verdict: got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestParse(t *testing.T) {
	const text = `-P INPUT ACCEPT
-P FORWARD DROP
-N DOCKER-USER
-A FORWARD -j DOCKER-USER
-A FORWARD -s 10.0.0.0/255.0.255.0 ! -o docker0 -p tcp -m tcp --dport 8080 -m comment --comment "a \"b\" c" -j ACCEPT
-A DOCKER-USER -j NFLOG
`
	want := Table{Backend: Legacy, Family: "ip", Name: "filter", Chains: map[string]Chain{
		"INPUT": {Hook: "input"},
		"FORWARD": {Hook: "forward", Drops: true, Rules: []Rule{
			{Action: Jump, Chain: "DOCKER-USER"},
			{Action: Accept, Comment: `a "b" c`, Conditions: []Condition{
				{Field: Unknown},
				{Field: Out, Not: true, Values: []string{"docker0"}},
				{Field: Protocol, Values: []string{"tcp"}},
				{Field: Port, Values: []string{"8080"}},
			}},
		}},
		"DOCKER-USER": {Rules: []Rule{{}}},
	}}
	if diff := cmp.Diff(want, Parse(Legacy, "ip", "filter", text)); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
}

// FuzzParse checks that any text, even one that iptables would never print, leads to a
// verdict.
func FuzzParse(f *testing.F) {
	f.Add("-P FORWARD DROP\n-N X\n-A FORWARD -i meshd0 -j X\n-A X ! -s 10.0.0.0/8 -m comment --comment \"a b\" -g FORWARD")
	f.Add("-A FORWARD !\n-A FORWARD -j\n-A\n-P FORWARD\n-A FORWARD -p tcp --dport 1:2,3 -j REJECT")
	f.Fuzz(func(t *testing.T, text string) {
		switch v := Parse(Legacy, "ip", "filter", text).Evaluate("FORWARD", forwarded); v {
		case Accepted, Dropped, Unsure:
		default:
			t.Errorf("verdict: got %q", v)
		}
	})
}

// hostPort has rules of portmap and kube-proxy, as iptables -t nat -S prints them.
const hostPort = `-P PREROUTING ACCEPT
-P OUTPUT ACCEPT
-N CNI-HOSTPORT-DNAT
-N CNI-DN-1
-N CNI-HOSTPORT-SETMARK
-N KUBE-SERVICES
-N KUBE-NODEPORTS
-N KUBE-EXT-A
-N KUBE-SVC-A
-N KUBE-SEP-A
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A CNI-HOSTPORT-DNAT -p udp -m comment --comment "dnat name: \"meshd\" id: \"f00\"" -m multiport --dports 51820 -j CNI-DN-1
-A CNI-DN-1 -s 10.42.0.0/24 -p udp -m udp --dport 51820 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-1 -p udp -m udp --dport 51820 -j DNAT --to-destination 10.42.0.7:51820
-A CNI-HOSTPORT-SETMARK -j MARK --set-xmark 0x2000/0x2000
-A KUBE-SERVICES -d 10.43.0.9/32 -p udp -m comment --comment "default/loki:gossip cluster IP" -m udp --dport 7946 -j KUBE-SVC-A
-A KUBE-SERVICES -d 192.0.2.1/32 -p udp -m comment --comment "default/vpn:wg external IP" -m udp --dport 7946 -j KUBE-EXT-A
-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p udp -m comment --comment default/vpn:wg -m udp --dport 30080 -j KUBE-EXT-A
-A KUBE-EXT-A -j KUBE-SVC-A
-A KUBE-SVC-A -m statistic --mode random --probability 0.5 -j KUBE-SEP-A
-A KUBE-SEP-A -p udp -m udp -j DNAT --to-destination 10.42.0.8:7946
`

func TestRedirected(t *testing.T) {
	for _, tt := range []struct {
		name     string
		rules    string
		protocol string
		port     uint16
		want     Redirect
	}{
		{"hostPort", hostPort, "udp", 51820, Redirect{"CNI-DN-1", "10.42.0.7:51820", `dnat name: "meshd" id: "f00"`}},
		{"hostPort of the other protocol", hostPort, "tcp", 51820, Redirect{}},
		{"external IP", hostPort, "udp", 7946, Redirect{"KUBE-SEP-A", "10.42.0.8:7946", "default/vpn:wg external IP"}},
		{"node port", hostPort, "udp", 30080, Redirect{"KUBE-SEP-A", "10.42.0.8:7946", "default/vpn:wg"}},
		{"no rule for the port", hostPort, "udp", 7947, Redirect{}},
		{"every port", "-P PREROUTING ACCEPT\n-A PREROUTING -i eth0 -j DNAT --to-destination 10.0.0.5", "tcp", 7948, Redirect{"PREROUTING", "10.0.0.5", ""}},
		{"every port, from some sources", "-P PREROUTING ACCEPT\n-A PREROUTING -m set --match-set foes src -j DNAT --to-destination 10.0.0.5", "tcp", 7948, Redirect{}},
		{"accepted before", "-P PREROUTING ACCEPT\n-A PREROUTING -p tcp -m tcp --dport 7948 -j ACCEPT\n-A PREROUTING -j DNAT --to-destination 10.0.0.5", "tcp", 7948, Redirect{}},
		{"every port but this one", "-P PREROUTING ACCEPT\n-A PREROUTING -p tcp -m tcp ! --dport 7948 -j DNAT --to-destination 10.0.0.5", "tcp", 7948, Redirect{}},
		{"redirects in a loop of jumps", "-P PREROUTING ACCEPT\n-N X\n-A PREROUTING -j X\n-A X -j X", "tcp", 7948, Redirect{}},
		{"redirect", "-P PREROUTING ACCEPT\n-A PREROUTING -p tcp -m tcp --dport 7948 -j REDIRECT --to-ports 99", "tcp", 7948, Redirect{"PREROUTING", "99", ""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := Packet{In: "eth0", Protocol: tt.protocol, Port: tt.port, Source: netip.MustParseAddr("198.51.100.1"), Destination: netip.MustParseAddr("192.0.2.1")}
			got, ok := Parse(Legacy, "ip", "nat", tt.rules).Redirected("PREROUTING", p)
			if ok != (tt.want != Redirect{}) || got != tt.want {
				t.Errorf("redirect: got %+v, %v, want %+v", got, ok, tt.want)
			}
		})
	}
}

// TestDroppedAt checks that the rule is named that drops a packet, not those before it.
func TestDroppedAt(t *testing.T) {
	const rules = "-P FORWARD ACCEPT\n-N mine\n-A FORWARD -i eth0 -j DROP\n-A FORWARD -j mine\n-A mine -p udp -j DROP\n-A mine -s 10.42.0.0/16 ! -i eth0 -m set --match-set a src -j RETURN\n-A mine -s 10.42.0.0/16 ! -i eth0 -j DROP"
	got := Parse(XTNFT, "ip", "filter", rules).DroppedAt("FORWARD", forwarded)
	if want := "saddr 10.42.0.0/16 iifname != eth0 drop"; got.Chain != "mine" || got.Rule.String() != want {
		t.Errorf("got %q in the chain %s, want %q in mine", got.Rule, got.Chain, want)
	}
	got = Parse(XTNFT, "ip", "filter", "-P FORWARD DROP").DroppedAt("FORWARD", forwarded)
	if got.Chain != "FORWARD" || got.Rule.String() != "" {
		t.Errorf("got %q in the chain %s, want the policy of FORWARD", got.Rule, got.Chain)
	}
}

func TestRuleString(t *testing.T) {
	for rule, want := range map[string]string{
		"-p udp -m multiport --sports 1:5,9 -j DROP":                               "meta l4proto udp th sport { 1-5, 9 } drop",
		"-d 10.0.0.0/8 -m multiport --dports 1,2,3,4 -j ACCEPT":                    "daddr 10.0.0.0/8 th dport { 1, 2, 3, ... } accept",
		"-m set --match-set a src -m conntrack --ctstate NEW -g X":                 "... ct state new goto X",
		"-m mark ! --mark 0x10/0x10 -o br+ -m addrtype --dst-type LOCAL -j RETURN": "meta mark != 16 oifname br* fib daddr type local return",
	} {
		if got := Parse(XTNFT, "ip", "filter", "-N X\n-A X "+rule).Chains["X"].Rules[0].String(); got != want {
			t.Errorf("%s: got %q, want %q", rule, got, want)
		}
	}
}

// TestDistinct checks the law that makes few packets stand for many: each packet has the
// verdict of the one that stands for its class.
func TestDistinct(t *testing.T) {
	table := Parse(XTNFT, "ip", "filter", `-P INPUT ACCEPT
-A INPUT -s 10.0.1.0/24 -p udp --sport 100:200 -j DROP
-A INPUT -m iprange --src-range 10.0.3.7-10.0.3.9 -j DROP
-A INPUT -s 255.255.255.255/32 -j DROP
-A INPUT -d 10.0.9.1/32 ! -i eth0 -p udp -m multiport --dports 5,65535 -j DROP`)
	addr := func(third, fourth int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(third), byte(fourth)}) }
	rapid.Check(t, func(t *rapid.T) {
		var packets []Packet
		for range 200 {
			packets = append(packets, Packet{
				In: rapid.SampledFrom([]string{"eth0", "eth1"}).Draw(t, "in"), Protocol: "udp",
				Port:        rapid.SampledFrom([]uint16{4, 5, 6, 65534, 65535}).Draw(t, "port"),
				SourcePort:  rapid.SampledFrom([]uint16{99, 100, 150, 200, 201}).Draw(t, "source port"),
				Source:      addr(rapid.IntRange(0, 4).Draw(t, "network"), rapid.IntRange(0, 12).Draw(t, "host")),
				Destination: addr(9, rapid.IntRange(0, 2).Draw(t, "destination")),
			})
		}
		parts := NewDistinct(table, nil)
		few := parts.Of(packets)
		for _, p := range packets {
			same := parts.Of(append(slices.Clone(few), p))
			if len(same) != len(few) {
				t.Fatalf("nothing stands for %+v", p)
			}
			one := slices.IndexFunc(few, func(f Packet) bool { return len(parts.Of([]Packet{f, p})) == 1 })
			if got, want := table.Evaluate("INPUT", few[one]), table.Evaluate("INPUT", p); got != want {
				t.Fatalf("%+v is %s, but stands for %+v, which is %s", few[one], got, p, want)
			}
		}
	})
	// Nodes that no rule tells apart are one packet.
	var nodes []Packet
	for i := range 200 {
		nodes = append(nodes, Packet{In: "eth0", Protocol: "udp", Port: 51820, SourcePort: uint16(40000 + i), Source: addr(100, i), Destination: addr(9, 5)})
	}
	if got := len(NewDistinct(table, nil).Of(nodes)); got != 1 {
		t.Errorf("got %d packets for %d nodes, want 1", got, len(nodes))
	}
	if got := len(NewDistinct(table, []netip.Prefix{netip.MustParsePrefix("10.0.100.64/26")}).Of(nodes)); got != 3 {
		t.Errorf("got %d packets for nodes within a source and beside it, want 3", got)
	}
}
