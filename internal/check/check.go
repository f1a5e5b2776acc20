// SPDX-License-Identifier: Apache-2.0

// Package check looks at a host before anything is changed there, and says what
// will keep meshd from working on it, or from working well: each with the way
// out. It is what `meshd check` prints.
//
// Two steps, as everywhere in meshd. [Look] is the edge: it reads [Facts] from
// the kernel, from files and from the network, and changes none of them. What
// can only be found out by trying, it tries in a network namespace that nobody
// is in and that is gone afterwards. [Judge] is pure and turns the facts into
// [Finding]s.
//
//	config.Config ─┬─► Look ─► Facts ─┐
//	               └──────────────────┴─► Judge ─► []Finding
//
// What a running daemon has put on the host is no finding. Neither is what the
// daemon sets by itself, such as net.ipv4.ip_forward. Strict filtering of
// return paths (net.ipv4.conf.all.rp_filter = 1) is harmless, because the higher
// of that and the device's own counts, which meshd sets to loose.
//
// What packet filters do with a packet is known to package netcfg/filter.
package check

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// Finding is one thing that was looked at, and what is to be said of it.
type Finding struct {
	Level  Level  `json:"level"`
	What   string `json:"what"`   // a word or two: what was looked at
	Text   string `json:"text"`   // what there is
	Advice string `json:"advice"` // what to do; "" for OK
}

// Level says how much a finding matters.
type Level string

// The levels. With an error, meshd doesn't start or some of the mesh doesn't
// work.
const (
	OK      Level = "ok"
	Warning Level = "warning"
	Error   Level = "error"
)

// Judge turns facts into findings, in the order in which they are best read and
// dealt with. It is pure.
func Judge(cfg config.Config, f Facts) []Finding {
	return slices.Concat(
		f.permission(), f.configuration(), f.state(), f.kernel(cfg), f.names(cfg), f.ports(),
		f.firewall(cfg), f.mtu(cfg), f.location(cfg), f.overlaps(cfg), f.cni(cfg), f.k3s(cfg), f.unit(), f.clock(), f.reach(), f.size(cfg), f.unread(),
	)
}

func ok(what, format string, args ...any) []Finding {
	return []Finding{{Level: OK, What: what, Text: fmt.Sprintf(format, args...)}}
}

// sayWhatToDo makes findings of errors that end in what to do, as those of the
// packages that judge files do: what is wrong; what to do.
func sayWhatToDo(what string, err error) []Finding {
	var out []Finding
	for line := range strings.Lines(err.Error()) {
		text, advice, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "; ")
		if !ok {
			advice = "see what is there"
		}
		out = append(out, Finding{Error, what, text, advice})
	}
	return out
}

// permission comes first: without it, half of the rest is missing.
func (f Facts) permission() []Finding {
	const what = "permission"
	switch {
	case f.Capable:
		return ok(what, "may configure the network")
	case f.Root:
		return []Finding{{Error, what, "root, but without CAP_NET_ADMIN or CAP_SYS_ADMIN: kernel, firewall and device were not looked at, and meshd can't work", "run meshd on the host itself, or grant the container these capabilities"}}
	}
	return []Finding{{Warning, what, "not root: kernel, firewall and device were not looked at", "run: sudo meshd check"}}
}

// configuration are mistakes in what the configuration refers to; one that can't
// be parsed never gets here.
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
			out = append(out, Finding{Error, what, e.Error(), "see that the file can be read"})
		}
	}
	if out == nil {
		return ok(what, "the file and its secret are in order")
	}
	return out
}

// ports says who has the ports that meshd listens on.
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
			out = append(out, Finding{Error, what, fmt.Sprintf("%s is the port of %s, but %s is no address of this host", name, p.Key, p.Address), "set " + p.Key + " to an address of this host, or to a port alone"})
		case !f.Root && p.Holder == "": // who it is, only root may see
			out = append(out, Finding{Warning, what, fmt.Sprintf("%s (%s) is taken, maybe by meshd itself", name, p.Key), "run: sudo meshd check"})
		default:
			holder := "another program"
			if p.Holder != "" {
				holder = p.Holder
			}
			advice := "stop that program, or set " + p.Key + " to another port"
			if p.Key == vxlanKey {
				advice = "stop that program, or set " + p.Key + " to never on all nodes"
			}
			out = append(out, Finding{Error, what, fmt.Sprintf("%s (%s) is taken by %s", name, p.Key, holder), advice})
		}
	}
	if out == nil && len(free) > 0 {
		return ok(what, "%s are free or meshd's", strings.Join(free, ", "))
	}
	return out
}

// names are links that have the names of ours and aren't.
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
		return []Finding{{Warning, what, fmt.Sprintf("wireguard.mtu is %d, but only %d fit through the uplink's %d", cfg.WireGuard.MTU, fits, f.Host.MTU), "set wireguard.mtu to auto"}}
	case v6 && fits < mesh.MinMTU6:
		return []Finding{{Warning, what, fmt.Sprintf("IPv6 needs an MTU of %d inside the tunnels, and only %d fit through the uplink's %d: packets will come in fragments", mesh.MinMTU6, fits, f.Host.MTU), fmt.Sprintf("raise the uplink's MTU to %d, or use IPv4 ranges only", mesh.MinMTU6+mesh.Overhead)}}
	}
	return ok(what, "%d on the uplink leave %d for the tunnels", f.Host.MTU, fits)
}

// location judges whether this host shares a network with the others of its
// location. Where there is no way out at all, that is what is to be said.
func (f Facts) location(cfg config.Config) []Finding {
	const what = "location"
	if cfg.Node.Location == "" || len(f.Host.Uplinks) == 0 {
		return nil
	}
	if !cfg.Node.InternalIP.IsValid() && len(f.Host.InternalIPs) == 0 {
		return []Finding{{Error, what, fmt.Sprintf("node.location is %s, but this host has no private address", cfg.Node.Location), "set node.internal-ip to its address in that location's network, as 192.168.10.1/24, or remove node.location"}}
	}
	return ok(what, "this host has an address in the network of %s", cfg.Node.Location)
}

// overlaps finds networks that this host is in or has a route to, and that share
// addresses with the cluster's. What is more specific than the mesh's routes
// takes packets away from it; what is less specific loses some to it.
func (f Facts) overlaps(cfg config.Config) []Finding {
	const what = "ranges"
	var out []Finding
	for _, r := range ranges(cfg) {
		for _, n := range f.Networks {
			if !r.prefix.Overlaps(n.Prefix) || n.Link == cfg.WireGuard.Interface || n.Link == cfg.CNI.Bridge || strings.HasPrefix(n.Link, "kube-") {
				continue
			}
			text := fmt.Sprintf("%s %s overlaps %s, to which this host has a route by %s", r.key, r.prefix, n.Prefix.Masked(), n.Link)
			inside := r.prefix.Bits() <= n.Prefix.Bits()
			if n.Own {
				text = fmt.Sprintf("%s %s overlaps %s, the network of this host's address on %s", r.key, r.prefix, n.Prefix.Masked(), n.Link)
				inside = inside || r.prefix.Contains(n.Prefix.Addr())
			}
			advice := fmt.Sprintf("choose another range for %s, the same on all nodes", r.key)
			if n.Link == "cni0" || strings.HasPrefix(n.Link, "flannel") {
				advice = fmt.Sprintf("if another pod network was here before, remove what it left: ip link delete %s", n.Link)
			}
			level := Warning
			if inside {
				level = Error
			}
			out = append(out, Finding{level, what, text, advice})
		}
	}
	if out == nil {
		return ok(what, "the cluster's ranges overlap no network of this host")
	}
	return out
}

type clusterRange struct {
	key    string
	prefix netip.Prefix
}

func ranges(cfg config.Config) []clusterRange {
	var all []clusterRange
	for _, list := range []struct {
		key      string
		prefixes []netip.Prefix
	}{
		{"cluster.overlay", cfg.Cluster.Overlay},
		{"cluster.pods", cfg.Cluster.Pods},
		{"cluster.services", cfg.Cluster.Services},
	} {
		for _, p := range list.prefixes {
			all = append(all, clusterRange{list.key, p})
		}
	}
	return all
}

// clock matters because of two nodes that claim the same addresses, the earlier
// one has them.
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

// reach is about names and addresses outside of this host.
func (f Facts) reach() []Finding {
	var out []Finding
	var joins, reached int
	for _, r := range f.Reach {
		if r.Port != 0 {
			joins++
		}
		switch {
		case r.ResolveErr != nil:
			out = append(out, Finding{Warning, r.Key, fmt.Sprintf("%s does not resolve: %v", r.Host, r.ResolveErr), "correct the name, or see to the resolver in /etc/resolv.conf"})
		case r.DialErr != nil:
			out = append(out, Finding{Warning, r.Key, fmt.Sprintf("%s does not answer on TCP port %d: %v", r.Host, r.Port, r.DialErr), fmt.Sprintf("see that meshd runs there, and open TCP and UDP port %d to it; the first node of a mesh needs no join", r.Port)})
		case r.Port != 0:
			reached++
		default:
			out = append(out, ok(r.Key, "%s resolves", r.Host)...)
		}
	}
	if joins > 0 && reached == joins {
		return append(ok("join", "all %d answer", joins), out...)
	}
	return out
}

// crowd is from how many nodes on the number of slots deserves a thought.
const crowd = 50

func (f Facts) size(cfg config.Config) []Finding {
	free := cfg.Cluster.Slots() - f.Nodes
	if !f.Running || f.Nodes == 0 || free > 0 && (f.Nodes <= crowd || free >= cfg.Cluster.Slots()/4) {
		return nil
	}
	return []Finding{{Warning, "size", fmt.Sprintf("%d nodes are known, and the ranges have room for %d more", f.Nodes, max(free, 0)), "run meshd forget for nodes that are gone; for a larger mesh, plan one with wider cluster.overlay and cluster.pods"}}
}

// unread is what could not be looked at, and so may be anything.
func (f Facts) unread() []Finding {
	var out []Finding
	for _, u := range f.Unread {
		out = append(out, Finding{Warning, u.What, "could not be looked at: " + u.Err.Error(), "look at it by hand"})
	}
	return out
}
