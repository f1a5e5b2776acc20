// SPDX-License-Identifier: Apache-2.0

package connect

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
)

// A node that may answer can be somebody's, too. What it says is put into effect by
// root, so it is held to what the client was given when its configuration was made.

const (
	// maxAnswer bounds what a node answers, in bytes, maxPeers and maxPrefixes what is
	// in there: far above a cluster in which all nodes have endpoints.
	maxAnswer   = 2 << 20
	maxPeers    = 2048
	maxPrefixes = 1 << 14
	maxSearch   = 6 // domains, as in resolv.conf(5)
	// minBits is how long a prefix is at least: neither a default route nor its halves.
	minBits = 8
	// What a link may carry: at least what IPv4 asks for (RFC 791), at most jumbo frames.
	minMTU, maxMTU = 576, 9216
	maxKeepalive   = 3600 // seconds
)

// hostName is what may be in a name: it goes to a resolver's file and to a terminal.
var hostName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?$`)

// believe returns what of an answer may be put into effect, and names what may not:
// who the client is stays as in the file, and it reaches nothing beyond what it was
// granted there. An error means that the answer is worth nothing.
func (f File) believe(told control.ClientConfig) (believed control.ClientConfig, left []string, err error) {
	if err := checkSizes(told); err != nil {
		return believed, nil, err
	}
	believed = f.Config
	low := minMTU
	if slices.ContainsFunc(believed.Overlay, netip.Addr.Is6) {
		low = mesh.MinMTU6
	}
	if told.MTU < low || told.MTU > maxMTU || told.Keepalive < 0 || told.Keepalive > maxKeepalive {
		return believed, nil, fmt.Errorf("an MTU of %d, keepalives each %d s", told.MTU, told.Keepalive)
	}
	believed.MTU, believed.Keepalive = told.MTU, told.Keepalive
	granted := f.granted()
	if believed.Resolver, believed.Search, err = believeResolver(told, granted); err != nil {
		return believed, nil, err
	}
	own := f.PrivateKey.PublicKey().String()
	believed.Peers, left = believePeers(told.Peers, granted, own)
	standbys, leftStandbys := believePeers(told.Standbys, granted, own)
	believed.Standbys = standbys
	if len(believed.Peers) == 0 {
		return believed, nil, fmt.Errorf("no peer of %d can be used: %v", len(told.Peers), left)
	}
	return believed, append(left, leftStandbys...), nil
}

// checkSizes refuses an answer of a size that no cluster has.
func checkSizes(c control.ClientConfig) error {
	prefixes := 0
	for _, p := range slices.Concat(c.Peers, c.Standbys) {
		prefixes += len(p.AllowedIPs)
	}
	if len(c.Peers) == 0 || len(c.Peers) > maxPeers || len(c.Standbys) > maxPeers || prefixes > maxPrefixes || len(c.Search) > maxSearch {
		return fmt.Errorf("%d peers, %d standbys, %d prefixes, %d domains: no cluster has that", len(c.Peers), len(c.Standbys), prefixes, len(c.Search))
	}
	return nil
}

func believeResolver(told control.ClientConfig, granted []netip.Prefix) (resolver string, search []string, err error) {
	if told.Resolver == "" {
		return "", nil, nil
	}
	a, err := netip.ParseAddr(told.Resolver)
	if err != nil || a.Zone() != "" || !within(netip.PrefixFrom(a, a.BitLen()), granted) {
		return "", nil, fmt.Errorf("resolver %q is not in the cluster's ranges", told.Resolver)
	}
	for _, s := range told.Search {
		if !hostName.MatchString(s) {
			return "", nil, fmt.Errorf("domain %q is no host name", s)
		}
	}
	return a.String(), told.Search, nil
}

// believePeers returns the peers that can be used, each with what was granted of its
// prefixes, and names the rest.
func believePeers(told []control.ClientPeer, granted []netip.Prefix, own string) (peers []control.ClientPeer, left []string) {
	keys := map[string]bool{own: true}
	prefixes := make(map[netip.Prefix]bool)
	for _, p := range told {
		kept := make([]netip.Prefix, 0, len(p.AllowedIPs))
		for _, a := range p.AllowedIPs {
			if !within(a, granted) || prefixes[a] {
				left = append(left, fmt.Sprintf("%v of %q", a, p.Name))
				continue
			}
			prefixes[a] = true
			kept = append(kept, a)
		}
		p.AllowedIPs = kept
		err := checkPeer(p)
		if err == nil && (keys[p.PublicKey] || !hostName.MatchString(p.Name)) {
			err = errors.New("its name or its key can't be")
		}
		if err != nil {
			left = append(left, fmt.Sprintf("peer %q: %v", p.Name, err))
			continue
		}
		keys[p.PublicKey] = true
		peers = append(peers, p)
	}
	return peers, left
}

// within reports whether a prefix is one, and lies in one of others.
func within(p netip.Prefix, of []netip.Prefix) bool {
	return p.IsValid() && p == p.Masked() && !p.Addr().Is4In6() && p.Bits() >= minBits &&
		slices.ContainsFunc(of, func(g netip.Prefix) bool { return g.Bits() <= p.Bits() && g.Contains(p.Addr()) })
}

// checkPeer says why there can't be a tunnel to a peer.
func checkPeer(p control.ClientPeer) error {
	if p.ID == (mesh.ID{}) {
		return errors.New("it has no fingerprint")
	}
	if _, err := wgtypes.ParseKey(p.PublicKey); err != nil {
		return fmt.Errorf("public key: %w", err)
	}
	if !slices.ContainsFunc(p.AllowedIPs, func(a netip.Prefix) bool { return a.Contains(p.Overlay) }) {
		return fmt.Errorf("its overlay address %v is not among its allowed IPs", p.Overlay)
	}
	host, port, err := net.SplitHostPort(p.Endpoint)
	if err != nil {
		return fmt.Errorf("endpoint: %w", err)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("endpoint: port %q", port)
	}
	if a, err := netip.ParseAddr(host); err == nil && !isUnicast(a) || err != nil && !hostName.MatchString(strings.TrimSuffix(host, ".")) {
		return fmt.Errorf("endpoint: host %q", host)
	}
	return nil
}

// isUnicast reports whether packets to an address may go to one other host.
func isUnicast(a netip.Addr) bool {
	broadcast := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	return a.IsValid() && a.Zone() == "" && !a.Is4In6() && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() && !a.IsLinkLocalUnicast() && a != broadcast
}

// withoutAttached returns peers without what overlaps the host's own networks, which
// stay as they are, and names what is left out.
func withoutAttached(peers []control.ClientPeer, attached []netip.Prefix) (kept []control.ClientPeer, left []string) {
	for _, p := range peers {
		p.AllowedIPs = slices.DeleteFunc(slices.Clone(p.AllowedIPs), func(a netip.Prefix) bool {
			i := slices.IndexFunc(attached, a.Overlaps)
			if i >= 0 {
				left = append(left, fmt.Sprintf("%v overlaps %v", a, attached[i]))
			}
			return i >= 0
		})
		kept = append(kept, p)
	}
	return kept, left
}

// attached are the networks of this host's links but for one.
func attached(except string) ([]netip.Prefix, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var out []netip.Prefix
	for _, l := range links {
		if l.Name == except {
			continue
		}
		addrs, err := l.Addrs()
		if err != nil {
			continue // it has just gone
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				out = append(out, p.Masked())
			}
		}
	}
	return out, nil
}
