// SPDX-License-Identifier: Apache-2.0

package check

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/meshd/meshd/internal/check/filter"
	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/netcfg"
)

// trial is a packet that has to get through for the mesh to work, and what a
// rule that lets it through asks for.
type trial struct {
	hook   string
	name   string // for people
	packet filter.Packet
	link   string // by which it comes, if a rule is to ask for that
	back   string // by which it leaves: a rule for answers only
	port   bool   // a rule is to ask for protocol and port
}

// kubeletPort stands for everything that nodes and pods want of this host.
const kubeletPort = 10250

// faraway are addresses on the internet, for documentation (RFC 5737, RFC 3849).
var faraway = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}

// trials are the packets to try, in each family that they can have.
func (f Facts) trials(cfg config.Config) []trial {
	var all []trial
	device, bridge := cfg.WireGuard.Interface, cfg.CNI.Bridge
	far, near := cfg.Cluster.PodCIDRs(1), cfg.Cluster.PodCIDRs(0)
	for i := range near {
		outside := faraway[0]
		if near[i].Addr().Is6() {
			outside = faraway[1]
		}
		overlay, here := cfg.Cluster.Overlays(1)[i], cfg.Cluster.Overlays(0)[i]
		uplink := f.uplink(outside)
		pod, other := near[i].Addr().Next().Next(), far[i].Addr().Next().Next()
		all = append(all, trial{"input", "from the mesh to this host", packet(device, "", overlay, here, kubeletPort), device, "", false})
		if !cfg.CNI.Enabled {
			continue
		}
		all = append(all,
			trial{"input", "from pods to this host", packet(bridge, "", pod, here, kubeletPort), bridge, "", false},
			trial{"forward", "from the mesh to pods", packet(device, bridge, other, pod, 80), device, "", false},
			trial{"forward", "from pods to the mesh", packet(bridge, device, pod, other, 80), bridge, "", false})
		if uplink.Link != "" {
			answer := packet(uplink.Link, bridge, outside, pod, 40000)
			answer.Established = true
			all = append(all,
				trial{"forward", "from pods to the internet", packet(bridge, uplink.Link, pod, outside, 443), bridge, "", false},
				trial{"forward", "of answers from the internet to pods", answer, "", bridge, false})
		}
	}
	for _, a := range faraway {
		uplink := f.uplink(a)
		if uplink.Link == "" {
			continue
		}
		for _, port := range f.Ports {
			p := packet(uplink.Link, "", a, uplink.Source.Addr(), port.Port)
			p.Protocol = port.Network
			all = append(all, trial{"input", fmt.Sprintf("to %s port %d", strings.ToUpper(port.Network), port.Port), p, "", "", true})
		}
	}
	return all
}

func packet(in, out string, from, to netip.Addr, port uint16) filter.Packet {
	return filter.Packet{In: in, Out: out, Protocol: "tcp", Port: port, Source: from, Destination: to}
}

// uplink is the way out in an address's family, zero if there is none.
func (f Facts) uplink(a netip.Addr) netcfg.Uplink {
	for _, u := range f.Host.Uplinks {
		if u.Source.Addr().Is4() == a.Is4() {
			return u
		}
	}
	return netcfg.Uplink{}
}

// firewall tries the packets on each base chain of others. A chain of ours can't
// help: a packet has to get through all of them.
func (f Facts) firewall(cfg config.Config) []Finding {
	const what = "firewall"
	var out []Finding
	for _, t := range f.Filters {
		for _, name := range slices.Sorted(maps.Keys(t.Chains)) {
			if t.Chains[name].Hook == "" {
				continue
			}
			if finding, bad := judgeChain(t, name, f.trials(cfg)); bad {
				out = append(out, finding)
			}
		}
	}
	if out == nil && f.Capable {
		return ok(what, "lets through what the mesh needs")
	}
	return out
}

// judgeChain makes one finding of all packets that a chain keeps back.
func judgeChain(t filter.Table, chain string, trials []trial) (Finding, bool) {
	finding := Finding{Level: Warning, What: "firewall"}
	var names, commands []string
	for _, tr := range trials {
		v6 := tr.packet.Destination.Is6()
		if tr.hook != t.Chains[chain].Hook || v6 && t.Family == "ip" || !v6 && t.Family == "ip6" {
			continue
		}
		verdict := t.Judge(chain, tr.packet)
		if verdict == filter.Accepted {
			continue
		}
		if verdict == filter.Dropped {
			finding.Level = Error
		}
		names = appendNew(names, tr.name)
		commands = appendNew(commands, command(t, chain, tr))
	}
	if names == nil {
		return finding, false
	}
	drops := "drops"
	if finding.Level == Warning {
		drops = "may drop"
	}
	finding.Text = fmt.Sprintf("the chain %s of %s %s packets %s", chain, program(t), drops, strings.Join(names, ", "))
	finding.Advice = "run: " + strings.Join(commands, "; ")
	switch {
	case hasUFW(t):
	case hasFirewalld(t):
		finding.Advice += "; firewall-cmd --reload"
	default:
		finding.Advice += " (and add it to what sets up your firewall at boot)"
	}
	return finding, true
}

func appendNew(list []string, s string) []string {
	if slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}

// program names whose table it is.
func program(t filter.Table) string {
	switch {
	case hasUFW(t):
		return "ufw"
	case hasFirewalld(t):
		return "firewalld"
	case t.Backend == filter.NFT:
		return fmt.Sprintf("nft table %s %s", t.Family, t.Name)
	}
	return iptables(t)
}

func hasUFW(t filter.Table) bool {
	for name := range t.Chains {
		if strings.HasPrefix(name, "ufw") {
			return true
		}
	}
	return false
}

func hasFirewalld(t filter.Table) bool { return t.Backend == filter.NFT && t.Name == "firewalld" }

// iptables is the command that writes a table.
func iptables(t filter.Table) string {
	family := ""
	if t.Family == "ip6" {
		family = "6"
	}
	return strings.Replace(string(t.Backend), "ip", "ip"+family, 1)
}

// command is what lets a packet through, in the language of whoever has dropped
// it.
func command(t filter.Table, chain string, tr trial) string {
	p := tr.packet
	switch {
	case hasUFW(t) && tr.port:
		return fmt.Sprintf("ufw allow %d/%s", p.Port, p.Protocol)
	case hasUFW(t) && tr.hook == "input":
		return "ufw allow in on " + tr.link
	case hasUFW(t):
		return "ufw route allow in on " + cmp.Or(tr.link, p.In)
	case hasFirewalld(t) && tr.port:
		return fmt.Sprintf("firewall-cmd --permanent --add-port=%d/%s", p.Port, p.Protocol)
	case hasFirewalld(t):
		return "firewall-cmd --permanent --zone=trusted --add-interface=" + cmp.Or(tr.link, tr.back)
	case t.Backend == filter.NFT:
		return nftCommand(t, chain, tr)
	}
	return iptablesCommand(t, chain, tr)
}

func nftCommand(t filter.Table, chain string, tr trial) string {
	match := fmt.Sprintf("iifname %s", tr.link)
	switch {
	case tr.port:
		match = fmt.Sprintf("%s dport %d", tr.packet.Protocol, tr.packet.Port)
	case tr.back != "":
		match = fmt.Sprintf("oifname %s ct state established,related", tr.back)
	}
	return fmt.Sprintf("nft insert rule %s %s %s %s accept", t.Family, t.Name, chain, match)
}

// dockerUser is the chain that Docker leaves to others and asks first.
const dockerUser = "DOCKER-USER"

func iptablesCommand(t filter.Table, chain string, tr trial) string {
	if _, ok := t.Chains[dockerUser]; ok && tr.hook == "forward" {
		chain = dockerUser
	}
	match := "-i " + tr.link
	switch {
	case tr.port:
		match = fmt.Sprintf("-p %s --dport %d", tr.packet.Protocol, tr.packet.Port)
	case tr.back != "":
		match = fmt.Sprintf("-o %s -m conntrack --ctstate RELATED,ESTABLISHED", tr.back)
	}
	return fmt.Sprintf("%s -I %s %s -j ACCEPT", iptables(t), chain, match)
}
