// SPDX-License-Identifier: Apache-2.0

// Package check inspects a host before anything is changed there. It reports what will
// keep meshd from working, or from working well, each with advice. `meshd check` prints
// its findings.
//
// There are two steps, as everywhere in meshd. [ReadFacts] reads [Facts] from the kernel, from
// files and from the network, and changes none of them. Where only a trial can tell, it
// makes the trial in a temporary network namespace. [Evaluate] is pure and turns the facts
// into [Finding]s.
//
//	config.Config ─┬─► ReadFacts ─► Facts ─┐
//	               └───────────────────────┴─► Evaluate ─► []Finding
//
// State that a running daemon has made on the host is not reported, and neither are
// settings that the daemon makes by itself, such as net.ipv4.ip_forward. Strict reverse
// path filtering (net.ipv4.conf.all.rp_filter = 1) is harmless: the kernel uses the higher
// value of that and the device's own, and meshd sets the latter to 2 (loose).
//
// Package netcfg/filter evaluates other programs' packet filters.
package check

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// Finding is the result of one check.
type Finding struct {
	Level  Level  `json:"level"`
	What   string `json:"what"`   // a word or two: what was checked
	Text   string `json:"text"`   // what was found
	Advice string `json:"advice"` // what to do; "" for OK
}

// Level is the severity of a finding.
type Level string

// The levels. After an error, meshd doesn't start or a part of the mesh doesn't work.
const (
	OK      Level = "ok"
	Warning Level = "warning"
	Error   Level = "error"
)

// Evaluate turns facts into findings, in the order in which a person should deal with them.
// It is pure.
func Evaluate(cfg config.Config, f Facts) []Finding {
	return slices.Concat(
		f.permission(), f.configuration(), f.state(), f.kernel(cfg), f.names(cfg), f.ports(),
		f.firewall(cfg), f.mtu(cfg), f.location(cfg), f.internalIP(cfg), f.overlaps(cfg), f.cni(cfg), f.k3s(cfg), f.unit(), f.clock(), f.reach(cfg), f.taken(cfg), f.size(cfg), f.unread(),
	)
}

func ok(what, format string, args ...any) []Finding {
	return []Finding{{Level: OK, What: what, Text: fmt.Sprintf(format, args...)}}
}

// errorFindings turns an error into findings, one for each line. Packages that check files
// write them as "what is wrong; what to do".
func errorFindings(what string, err error) []Finding {
	var out []Finding
	for line := range strings.Lines(err.Error()) {
		text, advice, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "; ")
		if !ok {
			advice = "examine it by hand"
		}
		out = append(out, Finding{Error, what, text, advice})
	}
	return out
}

// permission comes first: without it, many other checks can't be made.
func (f Facts) permission() []Finding {
	const what = "permission"
	switch {
	case f.Capable:
		return ok(what, "may configure the network")
	case f.Root:
		return []Finding{{Error, what, "root, but without CAP_NET_ADMIN or CAP_SYS_ADMIN: kernel, firewall and device were not checked, and meshd can't work", "run meshd on the host itself, or grant the container these capabilities"}}
	}
	return []Finding{{Warning, what, "not root: kernel, firewall and device were not checked", "run: sudo meshd check"}}
}

// configuration reports errors in files that the configuration names. A configuration
// that can't be parsed has been refused before.
func (f Facts) configuration() []Finding {
	const what = "configuration"
	var out []Finding
	for _, e := range f.Config {
		var bad *config.Error
		switch {
		case !f.Root && errors.Is(e, fs.ErrPermission):
			out = append(out, Finding{Warning, what, e.Error(), "run: sudo meshd check"})
		case errors.As(e, &bad):
			text := *bad
			text.Advice = ""
			out = append(out, Finding{Error, what, text.Error(), bad.Advice})
		default:
			out = append(out, Finding{Error, what, e.Error(), "make the file readable"})
		}
	}
	if out == nil {
		return ok(what, "the file and its secret are in order")
	}
	return out
}

// ports reports other programs that use the ports that meshd listens on.
func (f Facts) ports() []Finding {
	const what = "ports"
	var out []Finding
	var free []string
	for _, p := range f.Ports {
		name := fmt.Sprintf("%s port %d", strings.ToUpper(p.Network), p.Port)
		switch {
		case p.State == PortFree, p.Ours:
			free = append(free, name)
		case p.State == PortForeign:
			out = append(out, Finding{Error, what, fmt.Sprintf("%s is the port of %s, but %s is not an address of this host", name, p.Key, p.Address), "set " + p.Key + " to an address of this host, or to a port alone"})
		case !f.Root && p.Process.PID == 0: // only root can see which program it is
			out = append(out, Finding{Warning, what, fmt.Sprintf("%s (%s) is taken, maybe by meshd itself", name, p.Key), "run: sudo meshd check"})
		default:
			advice := "stop that program, or set " + p.Key + " to another port"
			if p.Key == vxlanKey {
				advice = "stop that program, or set " + p.Key + " to never on all nodes"
			}
			out = append(out, Finding{Error, what, fmt.Sprintf("%s (%s) is taken by %s", name, p.Key, p.Process), advice})
		}
	}
	if out == nil && len(free) > 0 {
		return ok(what, "%s are free or meshd's", strings.Join(free, ", "))
	}
	return out
}

// names reports links that have the name of a link of ours but are not meshd's.
func (f Facts) names(cfg config.Config) []Finding {
	const what = "links"
	var out []Finding
	if f.ForeignDevice {
		out = append(out, Finding{Error, what, fmt.Sprintf("there is a link %s which is not meshd's", cfg.WireGuard.Interface), fmt.Sprintf("delete it (ip link delete %s), or set wireguard.interface to another name", cfg.WireGuard.Interface)})
	}
	if f.ForeignVXLAN && wantsVXLAN(cfg) {
		name := netcfg.VXLANName(cfg.WireGuard.Interface)
		out = append(out, Finding{Error, what, fmt.Sprintf("there is a link %s which is not meshd's", name), fmt.Sprintf("delete it (ip link delete %s), or set wireguard.interface to another name", name)})
	}
	for _, l := range f.Links {
		if cfg.CNI.Enabled && l.Name == cfg.CNI.Bridge && l.Kind != "bridge" {
			out = append(out, Finding{Error, what, fmt.Sprintf("the link %s is of kind %q and not a bridge", l.Name, l.Kind), fmt.Sprintf("delete it (ip link delete %s), or set cni.bridge to another name", l.Name)})
		}
	}
	if out == nil && f.Capable {
		return ok(what, "%s and %s are free or meshd's", cfg.WireGuard.Interface, cfg.CNI.Bridge)
	}
	return out
}

func (f Facts) mtu(cfg config.Config) []Finding {
	const what = "mtu"
	_, v6 := cfg.Cluster.Families()
	fits := f.Host.MTU - mesh.Overhead
	switch {
	case f.Host.MTU == 0:
		return []Finding{{Warning, what, "this host has no default route", "give it one, so that it reaches the other nodes"}}
	case cfg.WireGuard.MTU > fits:
		return []Finding{{Warning, what, fmt.Sprintf("wireguard.mtu is %d, but only %d fit through the %d of %s", cfg.WireGuard.MTU, fits, f.Host.MTU, f.Host.MTULink), "set wireguard.mtu to auto"}}
	case v6 && fits < mesh.MinMTU6:
		return []Finding{{Warning, what, fmt.Sprintf("IPv6 needs an MTU of %d inside the tunnels, and only %d fit through the %d of %s: packets will come in fragments", mesh.MinMTU6, fits, f.Host.MTU, f.Host.MTULink), fmt.Sprintf("raise its MTU to %d, or use IPv4 ranges only", mesh.MinMTU6+mesh.Overhead)}}
	}
	// What the daemon sets: wider links, of jumbo frames, don't count, because the way to
	// other nodes is no wider than Ethernet.
	device := cmp.Or(cfg.WireGuard.MTU, netcfg.MTU(f.Host.MTU, v6))
	return ok(what, "%d on %s, by which packets to other nodes leave; %s gets %d", f.Host.MTU, f.Host.MTULink, cfg.WireGuard.Interface, device)
}

// location reports whether this host has an address in the network of its location. A host
// without a default route is skipped: mtu reports that already.
func (f Facts) location(cfg config.Config) []Finding {
	const what = "location"
	if cfg.Node.Location == "" || len(f.Host.Uplinks) == 0 {
		return nil
	}
	if chosen, _ := f.Host.InternalIPs(cfg.Node.InternalIP, nil); len(chosen) == 0 {
		return []Finding{{Error, what, fmt.Sprintf("node.location is %s, but %s", cfg.Node.Location, netcfg.NoPrivateAddress), netcfg.NoPrivateAddressAdvice}}
	}
	return ok(what, "this host has an address in the network of %s", cfg.Node.Location)
}

// internalIP names the address that this node has on its private network, why it is that one,
// and what other private addresses the host has.
func (f Facts) internalIP(cfg config.Config) []Finding {
	const what = "internal ip"
	chosen, others := f.Host.InternalIPs(cfg.Node.InternalIP, f.InternalIPs)
	var out []Finding
	for _, i := range chosen {
		if i.Link == "" {
			out = append(out, Finding{Warning, what, fmt.Sprintf("node.internal-ip is %v, which no link of this host has", i.Address), "set node.internal-ip to an address that ip address shows, or remove it"})
			continue
		}
		out = append(out, ok(what, "%v", i)...)
	}
	for _, i := range others {
		out = append(out, ok(what, "not used: %v", i)...)
	}
	return out
}

// overlaps reports networks of this host, or behind its routes, that share addresses with
// the cluster's ranges. The host keeps them, so the mesh has no addresses there, which is an
// error; with a LAN of this host meshd does not start for the first time. A route to a wider network loses
// packets to the mesh: a warning.
func (f Facts) overlaps(cfg config.Config) []Finding {
	const what = "ranges"
	nearby := f.Host.Nearby
	if !cfg.CNI.Enabled {
		nearby = nearby.WithoutPods(cfg.Cluster)
	}
	var out []Finding
	for _, o := range nearby.Overlaps(cfg.Cluster) {
		advice := o.Advice()
		if link := o.Network.Link; link == "cni0" || strings.HasPrefix(link, "flannel") {
			advice = fmt.Sprintf("if another pod network was here before, end its pods with k3s-killall.sh; that removes %s, too", link)
		}
		out = append(out, Finding{Error, what, o.Text(), advice})
	}
	for _, o := range nearby.Wider(cfg.Cluster) {
		out = append(out, Finding{Warning, what, o.Text() + ": the mesh takes that part of it", o.Advice()})
	}
	if out == nil {
		return ok(what, "the cluster's ranges overlap no network of this host")
	}
	return out
}

// clock reports an unsynchronised clock: if two nodes claim the same addresses, the
// earlier claim wins.
func (f Facts) clock() []Finding {
	const what = "clock"
	if !f.ClockRead {
		return nil
	}
	if !f.ClockSynced {
		return []Finding{{Warning, what, "the system clock is not synchronised; which of two nodes has an address is decided by who claimed it first", "run: timedatectl set-ntp true (apt install systemd-timesyncd), or install chrony"}}
	}
	return ok(what, "synchronised")
}

// reach reports names that don't resolve, and join entries that don't answer or would not take this node.
func (f Facts) reach(cfg config.Config) []Finding {
	var out []Finding
	var joins, own, reached int
	for _, r := range f.Reach {
		if r.Port != 0 {
			joins++
		}
		switch {
		case r.ResolveErr != nil:
			out = append(out, Finding{Warning, r.Key, fmt.Sprintf("%s does not resolve: %v", r.Host, r.ResolveErr), "correct the name, or check the resolver in /etc/resolv.conf"})
		case r.DialErr != nil:
			out = append(out, Finding{Warning, r.Key, fmt.Sprintf("%s does not answer on TCP port %d: %v", r.Host, r.Port, r.DialErr), r.advice()})
		case r.Foreign:
			out = append(out, Finding{Warning, r.Key, fmt.Sprintf("%s has a certificate at TCP port %d that is not a node's: another server is there, or something on the way opens TLS%s", r.Host, r.Port, r.through()), "see that relay.listen names this port there; a load balancer with a certificate of its own is no fault"})
		case errors.Is(r.LookErr, gossip.ErrSecret):
			out = append(out, Finding{Error, r.Key, r.place() + " has another secret, or another program answers there", "copy the secret of a node to " + cfg.SecretFile + ", mode 0600, or see that the port is that of its gossip.bind"})
		case r.LookErr != nil:
			out = append(out, Finding{Warning, r.Key, fmt.Sprintf("something answers at %s, but not as a node of this version: %v", r.place(), r.LookErr), "see that meshd runs there, and that this is the port of its gossip.bind"})
		case r.Looked.Differs != nil:
			for _, text := range r.Looked.Differs {
				out = append(out, Finding{Error, r.Key, text, "write the same into both files"})
			}
		case r.Own:
			own++
		case r.Port != 0:
			reached++
		default:
			out = append(out, ok(r.Key, "%s resolves", r.Host)...)
		}
	}
	if joins > 0 && own == joins {
		return append(out, Finding{Warning, "join", "names only this host: it begins a mesh of its own", "name another node, or leave it out on the first node"})
	}
	if joins > 0 && own+reached == joins {
		text := fmt.Sprintf("all %d answer", reached)
		if i := slices.IndexFunc(f.Reach, func(r Reach) bool { return r.Proxy != "" }); i >= 0 {
			text += f.Reach[i].through() + ", which meshd needs in its own environment, too"
		}
		return append(ok("join", "%s", text), out...)
	}
	return out
}

// HasMet reports whether a node of the join list has been greeted, and would talk to this host.
func (f Facts) HasMet() bool {
	return slices.ContainsFunc(f.Reach, func(r Reach) bool { return r.Looked.ID != mesh.ID{} && r.Looked.Differs == nil })
}

// through names the proxy in a text.
func (r Reach) through() string {
	if r.Proxy == "" {
		return ""
	}
	return " through the proxy " + r.Proxy
}

// advice returns what to do about a host of the join list that does not answer.
func (r Reach) advice() string {
	switch {
	case r.Proxy != "":
		return fmt.Sprintf("see that relay.listen there is :%d, and that the proxy allows connections to it; NO_PROXY names hosts that are reached without", r.Port)
	case mesh.IsTLSPort(r.Port):
		return fmt.Sprintf("see that relay.listen there is :%d, and that the port is open; where only a proxy gets out, HTTPS_PROXY names it", r.Port)
	}
	return fmt.Sprintf("make sure that meshd runs there, and open TCP and UDP port %d to it; the first node of a mesh needs no join", r.Port)
}

// manyNodes is the number of nodes from which free slots should not run short.
const manyNodes = 50

// size reports a mesh that is about to run out of slots.
func (f Facts) size(cfg config.Config) []Finding {
	free := cfg.Cluster.Slots() - f.Nodes
	if !f.Running || f.Nodes == 0 || free > 0 && (f.Nodes <= manyNodes || free >= cfg.Cluster.Slots()/4) {
		return nil
	}
	return []Finding{{Warning, "size", fmt.Sprintf("%d nodes are known, and the ranges have room for %d more", f.Nodes, max(free, 0)), "run meshd forget for nodes that are gone; for a larger mesh, plan one with wider cluster.overlay and cluster.pods"}}
}

// unread reports what could not be checked.
func (f Facts) unread() []Finding {
	var out []Finding
	for _, u := range f.Unread {
		out = append(out, Finding{Warning, u.What, "could not be checked: " + u.Err.Error(), "check it by hand"})
	}
	return out
}
