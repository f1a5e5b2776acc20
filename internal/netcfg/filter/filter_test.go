// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// forwarded is a packet from the mesh to a pod.
var forwarded = Packet{
	In: "meshd0", Out: "kube-bridge", Protocol: "tcp", Port: 80,
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
		{"accepted by the link it comes from", "-P FORWARD DROP\n-A FORWARD -i meshd0 -j ACCEPT", forwarded, Accepted},
		{"accepted by any link of the kind", "-P FORWARD DROP\n-A FORWARD -o kube+ -j ACCEPT", forwarded, Accepted},
		{"another link", "-P FORWARD DROP\n-A FORWARD -i eth0 -j ACCEPT", forwarded, Dropped},
		{"not another link", "-P FORWARD DROP\n-A FORWARD ! -i eth0 -j ACCEPT", forwarded, Accepted},
		{"addresses", "-P FORWARD DROP\n-A FORWARD -s 10.42.0.0/16 -d 10.42.0.0/16 -j ACCEPT", forwarded, Accepted},
		{"one of two conditions", "-P FORWARD DROP\n-A FORWARD -s 10.42.0.0/16 -d 10.43.0.0/16 -j ACCEPT", forwarded, Dropped},
		{"port", "-P FORWARD DROP\n-A FORWARD -p tcp -m tcp --dport 80 -j ACCEPT", forwarded, Accepted},
		{"another protocol", "-P FORWARD DROP\n-A FORWARD -p udp -m udp --dport 80 -j ACCEPT", forwarded, Dropped},
		{"ports", "-P FORWARD DROP\n-A FORWARD -p tcp -m multiport --dports 22,79:81 -j ACCEPT", forwarded, Accepted},
		{"answers alone, a new connection", "-P FORWARD DROP\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", forwarded, Dropped},
		{"answers alone, an answer", "-P FORWARD DROP\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", answer, Accepted},
		{"packets that kube-proxy has marked", "-P FORWARD DROP\n-A FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT", forwarded, Dropped},
		{"rejected at the end", "-P FORWARD ACCEPT\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited", forwarded, Dropped},
		{"accepted before", "-P FORWARD ACCEPT\n-A FORWARD -i meshd0 -j ACCEPT\n-A FORWARD -j REJECT", forwarded, Accepted},
		{"accepted too late", "-P FORWARD ACCEPT\n-A FORWARD -j DROP\n-A FORWARD -i meshd0 -j ACCEPT", forwarded, Dropped},
		{"jump", "-P FORWARD DROP\n-N X\n-A FORWARD -i meshd0 -j X\n-A X -j ACCEPT", forwarded, Accepted},
		{"jump and back", "-P FORWARD DROP\n-N X\n-A FORWARD -j X\n-A FORWARD -j ACCEPT\n-A X -j RETURN\n-A X -j DROP", forwarded, Accepted},
		{"goto and back", "-P FORWARD DROP\n-N X\n-A FORWARD -g X\n-A FORWARD -j ACCEPT\n-A X -i eth0 -j ACCEPT", forwarded, Dropped},
		{"jump that is not taken", "-P FORWARD DROP\n-N X\n-A FORWARD -i eth0 -j X\n-A X -j ACCEPT", forwarded, Dropped},
		{"endless jumps", "-P FORWARD DROP\n-N X\n-A FORWARD -j X\n-A X -j X", forwarded, Unsure},
		{"log", "-P FORWARD DROP\n-A FORWARD -j LOG --log-prefix \"-j ACCEPT \"", forwarded, Dropped},
		{"comment", `-P FORWARD DROP` + "\n" + `-A FORWARD -i meshd0 -m comment --comment "! -i \"x" -j ACCEPT`, forwarded, Accepted},
		{"what is not for this host", "-P FORWARD DROP\n-N X\n-A FORWARD -j X\n-A FORWARD -i meshd0 -j ACCEPT\n-A X -m addrtype --dst-type UNICAST -j RETURN\n-A X -j DROP", forwarded, Accepted},
		{"may be accepted", "-P FORWARD DROP\n-A FORWARD -m set --match-set friends src -j ACCEPT", forwarded, Unsure},
		{"may be accepted after a jump", "-P FORWARD DROP\n-N X\n-A FORWARD -j X\n-A X -m set --match-set friends src -j ACCEPT\n-A X -j DROP", forwarded, Unsure},
		{"may be dropped", "-P FORWARD ACCEPT\n-A FORWARD -m set --match-set foes src -j DROP", forwarded, Accepted},
		{"not understood, but about another link", "-P FORWARD DROP\n-A FORWARD -i eth0 -m set --match-set friends src -j ACCEPT", forwarded, Dropped},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Parse(XTNFT, "ip", tt.rules).Judge("FORWARD", tt.packet); got != tt.want {
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
	if diff := cmp.Diff(want, Parse(Legacy, "ip", text)); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
}

// FuzzParse feeds text that no iptables would print: whatever it is, it ends in
// some verdict.
func FuzzParse(f *testing.F) {
	f.Add("-P FORWARD DROP\n-N X\n-A FORWARD -i meshd0 -j X\n-A X ! -s 10.0.0.0/8 -m comment --comment \"a b\" -g FORWARD")
	f.Add("-A FORWARD !\n-A FORWARD -j\n-A\n-P FORWARD\n-A FORWARD -p tcp --dport 1:2,3 -j REJECT")
	f.Fuzz(func(t *testing.T, text string) {
		switch v := Parse(Legacy, "ip", text).Judge("FORWARD", forwarded); v {
		case Accepted, Dropped, Unsure:
		default:
			t.Errorf("verdict: got %q", v)
		}
	})
}
