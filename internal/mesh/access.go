// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Access is one thing that a client may reach.
type Access struct {
	Protocol string       // tcp | udp; "" for all
	Port     uint16       // of the protocol; 0 without one
	Target   AccessTarget // "" if it is Prefix
	Prefix   netip.Prefix
}

// AccessTarget names some of the cluster's ranges, or the internet.
type AccessTarget string

// The targets.
const (
	AccessPods     AccessTarget = "pods"
	AccessServices AccessTarget = "services"
	AccessNodes    AccessTarget = "nodes"    // overlay addresses, internal IPs, and the nodes' own addresses in the pod ranges
	AccessInternet AccessTarget = "internet" // through an exit, see [Topology.Internet]
)

// ParseAccess reads what String writes: a target (pods, services, nodes, internet, an address
// or a network), or PROTOCOL/PORT@TARGET.
func ParseAccess(s string) (Access, error) {
	var a Access
	target := s
	if what, to, ok := strings.Cut(s, "@"); ok {
		protocol, port, _ := strings.Cut(what, "/")
		n, err := strconv.ParseUint(port, 10, 16)
		if protocol != "tcp" && protocol != "udp" || err != nil || n == 0 {
			return Access{}, fmt.Errorf("parse access %q: before the @ goes tcp/PORT or udp/PORT, as in tcp/443@services", s)
		}
		a.Protocol, a.Port, target = protocol, uint16(n), to
	}
	switch t := AccessTarget(target); t {
	case AccessPods, AccessServices, AccessNodes, AccessInternet:
		a.Target = t
		return a, nil
	}
	p, err := netip.ParsePrefix(target)
	if err != nil {
		addr, addrErr := netip.ParseAddr(target)
		if addrErr != nil || addr.Zone() != "" {
			return Access{}, fmt.Errorf("parse access %q: want pods, services, nodes, internet, an address or a network, as in 10.43.0.0/16", s)
		}
		p = single(addr)
	}
	if p != p.Masked() || p.Addr().Is4In6() {
		return Access{}, fmt.Errorf("parse access %q: %v has host bits set, write %v", s, p, p.Masked())
	}
	a.Prefix = p
	return a, nil
}

// ParseAccessList reads what AccessStrings returns.
func ParseAccessList(list []string) ([]Access, error) {
	var out []Access
	for _, s := range list {
		a, err := ParseAccess(s)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

// AccessStrings returns the entries of an access list as ParseAccess takes them; never nil.
func AccessStrings(list []Access) []string {
	out := []string{}
	for _, a := range list {
		out = append(out, a.String())
	}
	return out
}

// minAccessBits is the shortest prefix that an entry may name: the target internet is what
// leads to a default route, and not two halves of one. 10.0.0.0/8 and fd00::/8 are the widest
// that are useful.
const minAccessBits = 8

// CheckAccess returns what is wrong with the access list of a new client. A client that
// exists already keeps the list that it was given.
func CheckAccess(list []Access) error {
	if len(list) == 0 {
		return errors.New("the access list is empty; name what the client may reach, as pods,services,nodes, or leave the list out")
	}
	for _, a := range list {
		if a.Target != "" {
			continue
		}
		switch addr := a.Prefix.Addr(); {
		case a.Prefix.Bits() == 0:
			return fmt.Errorf("access %v: write internet for all that is neither the cluster's nor private, in both families", a)
		case a.Prefix.Bits() < minAccessBits:
			return fmt.Errorf("access %v is broader than a /%d; name a smaller network", a, minAccessBits)
		case addr.IsLoopback() || addr.IsLinkLocalUnicast() || addr.IsMulticast() || addr.IsUnspecified():
			return fmt.Errorf("access %v is never reached through a mesh; name a network of the cluster, or of a location's allowed-location-ips", a)
		}
	}
	return nil
}

// String returns the access as ParseAccess takes it.
func (a Access) String() string {
	s := string(a.Target)
	if s == "" {
		s = a.Prefix.String()
	}
	if a.Protocol != "" {
		s = fmt.Sprintf("%s/%d@%s", a.Protocol, a.Port, s)
	}
	return s
}

// Allowance is an Access with its target resolved to prefixes.
type Allowance struct {
	Protocol     string // tcp | udp; "" for all
	Port         uint16 // 0 without Protocol
	Destinations []netip.Prefix
	// Bridges are the networks in which the client may also reach the nodes' own
	// addresses in the pod ranges, see [Topology.PodRanges]. Destinations alone don't
	// include these.
	Bridges []netip.Prefix
	// Internet means that the client may also reach the internet, see [Topology.Internet].
	Internet bool
}

// allowances resolves an access list. Entries of one protocol and port become one.
// Clients with the same list share the result.
func (l *layout) allowances(list []Access) []Allowance {
	key := fmt.Sprint(list)
	if out, ok := l.allowed[key]; ok {
		return out
	}
	out := l.resolveAccess(list)
	if l.allowed == nil {
		l.allowed = make(map[string][]Allowance)
	}
	l.allowed[key] = out
	return out
}

func (l *layout) resolveAccess(list []Access) []Allowance {
	var out []Allowance
	for _, a := range list {
		i := slices.IndexFunc(out, func(o Allowance) bool { return o.Protocol == a.Protocol && o.Port == a.Port })
		if i < 0 {
			out, i = append(out, Allowance{Protocol: a.Protocol, Port: a.Port}), len(out)
		}
		out[i].Destinations = mergePrefixes(append(out[i].Destinations, l.destinations(a)...))
		out[i].Bridges = mergePrefixes(append(out[i].Bridges, l.bridges(a)...))
		out[i].Internet = out[i].Internet || a.Target == AccessInternet
	}
	slices.SortFunc(out, func(a, b Allowance) int {
		return strings.Compare(fmt.Sprint(a.Protocol, a.Port), fmt.Sprint(b.Protocol, b.Port))
	})
	return out
}

// destinations returns the networks that an access allows, without the internet.
func (l *layout) destinations(a Access) []netip.Prefix {
	switch a.Target {
	case AccessPods:
		return l.Cluster.Pods
	case AccessServices:
		return l.Cluster.Services
	case AccessNodes:
		return l.nodes
	case AccessInternet:
		return nil
	}
	return []netip.Prefix{a.Prefix}
}

// bridges returns the networks in which an access includes the nodes' own addresses in
// the pod ranges, which are those of their bridges. A node answers there on all its
// ports, so this needs access to nodes, or an access that names such an address.
func (l *layout) bridges(a Access) []netip.Prefix {
	switch {
	case a.Target == AccessNodes:
		return l.Cluster.Pods
	case a.Target == "" && a.Prefix.IsSingleIP() && contains(l.Cluster.Pods, a.Prefix.Addr()):
		return []netip.Prefix{a.Prefix}
	}
	return nil
}

// allows reports whether a list allows packets of a protocol to a port of an address.
func allows(list []Allowance, protocol string, port uint16, to netip.Addr) bool {
	return slices.ContainsFunc(list, func(a Allowance) bool {
		return (a.Protocol == "" || a.Protocol == protocol && a.Port == port) && contains(a.Destinations, to)
	})
}

// reachablePrefixes returns those prefixes of which a list allows at least a part.
func reachablePrefixes(ps []netip.Prefix, list []Allowance) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range ps {
		if slices.ContainsFunc(list, func(a Allowance) bool {
			_, ok := overlapping(a.Destinations, p)
			return ok
		}) {
			out = append(out, p)
		}
	}
	return out
}
