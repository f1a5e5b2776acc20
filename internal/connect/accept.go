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
	"github.com/meshd/meshd/internal/netcfg"
)

// Even an answer that is signed by a known node may be hostile, because a node can be
// taken over. The client runs as root, so it accepts only prefixes that lie in the
// ranges of its file, which were fixed when the client was added.

const (
	// maxAnswer bounds the size of an answer in bytes, maxPeers and maxPrefixes the number
	// of its entries. They are far above a cluster in which all nodes have endpoints.
	maxAnswer   = 2 << 20
	maxPeers    = 2048
	maxPrefixes = 1 << 14
	maxSearch   = 6 // domains, as in resolv.conf(5)
	// minBits is the shortest prefix length accepted, but for default routes that are granted
	// as such. It excludes halves of them.
	minBits = 8
	// At least what every IPv4 host must accept (RFC 791), at most jumbo frames.
	minMTU, maxMTU = 576, 9216
	maxKeepalive   = 3600 // seconds
)

// hostName limits the characters of names, because they are written to resolv.conf and
// to a terminal.
var hostName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?$`)

// accept returns the part of an answer that may be applied, and names the rejected rest.
// The client's own name, addresses and cluster stay as in the file, and only prefixes
// within its ranges are accepted. An error means that nothing of the answer is used.
func (f File) accept(answer control.ClientConfig) (accepted control.ClientConfig, rejected []string, err error) {
	if err := checkSizes(answer); err != nil {
		return accepted, nil, err
	}
	accepted = f.Config
	low := minMTU
	if slices.ContainsFunc(accepted.Overlay, netip.Addr.Is6) {
		low = mesh.MinMTU6
	}
	if answer.MTU < low || answer.MTU > maxMTU || answer.Keepalive < 0 || answer.Keepalive > maxKeepalive {
		return accepted, nil, fmt.Errorf("MTU %d or keepalive %d s is out of range", answer.MTU, answer.Keepalive)
	}
	accepted.MTU, accepted.Keepalive = answer.MTU, answer.Keepalive
	granted := f.granted()
	if accepted.Resolver, accepted.Search, err = acceptResolver(answer, granted); err != nil {
		return accepted, nil, err
	}
	own := f.PrivateKey.PublicKey().String()
	accepted.Peers, rejected = acceptPeers(answer.Peers, granted, own)
	standbys, rejectedStandbys := acceptPeers(answer.Standbys, granted, own)
	accepted.Standbys = standbys
	if len(accepted.Peers) == 0 {
		return accepted, nil, fmt.Errorf("none of %d peers can be used: %v", len(answer.Peers), rejected)
	}
	return accepted, append(rejected, rejectedStandbys...), nil
}

// checkSizes refuses answers that are larger than any real cluster needs.
func checkSizes(c control.ClientConfig) error {
	prefixes := 0
	for _, p := range slices.Concat(c.Peers, c.Standbys) {
		prefixes += len(p.AllowedIPs)
	}
	if len(c.Peers) == 0 || len(c.Peers) > maxPeers || len(c.Standbys) > maxPeers || prefixes > maxPrefixes || len(c.Search) > maxSearch {
		return fmt.Errorf("%d peers, %d standbys, %d prefixes, %d domains: too many, or no peer", len(c.Peers), len(c.Standbys), prefixes, len(c.Search))
	}
	return nil
}

func acceptResolver(answer control.ClientConfig, granted []netip.Prefix) (resolver string, search []string, err error) {
	if answer.Resolver == "" {
		return "", nil, nil
	}
	a, err := netip.ParseAddr(answer.Resolver)
	if err != nil || a.Zone() != "" || !within(netip.PrefixFrom(a, a.BitLen()), granted) {
		return "", nil, fmt.Errorf("resolver %q is not in the cluster's ranges", answer.Resolver)
	}
	for _, s := range answer.Search {
		if !hostName.MatchString(s) {
			return "", nil, fmt.Errorf("search domain %q is not a valid name", s)
		}
	}
	return a.String(), answer.Search, nil
}

// acceptPeers returns the peers that can be used, each with only those of its prefixes
// that are granted and that no peer before it has. It names what is rejected.
func acceptPeers(answer []control.ClientPeer, granted []netip.Prefix, own string) (peers []control.ClientPeer, rejected []string) {
	keys := map[string]bool{own: true}
	prefixes := make(map[netip.Prefix]bool)
	for _, p := range answer {
		kept := make([]netip.Prefix, 0, len(p.AllowedIPs))
		for _, a := range p.AllowedIPs {
			if !within(a, granted) || prefixes[a] {
				rejected = append(rejected, fmt.Sprintf("%v of %q", a, p.Name))
				continue
			}
			prefixes[a] = true
			kept = append(kept, a)
		}
		p.AllowedIPs = kept
		err := checkPeer(p)
		if err == nil && (keys[p.PublicKey] || !hostName.MatchString(p.Name)) {
			err = errors.New("its name is not valid, or another peer or this client has its key")
		}
		if err != nil {
			rejected = append(rejected, fmt.Sprintf("peer %q: %v", p.Name, err))
			continue
		}
		keys[p.PublicKey] = true
		peers = append(peers, p)
	}
	return peers, rejected
}

// within reports whether a prefix is valid and lies in one of the granted ones. A granted default
// route is for one node, the exit: it does not have others take parts of it.
func within(p netip.Prefix, granted []netip.Prefix) bool {
	if mesh.IsDefaultRoute(p) {
		return p == p.Masked() && slices.Contains(granted, p)
	}
	return p.IsValid() && p == p.Masked() && !p.Addr().Is4In6() && p.Bits() >= minBits &&
		slices.ContainsFunc(granted, func(g netip.Prefix) bool { return !mesh.IsDefaultRoute(g) && mesh.ContainsPrefix(g, p) })
}

// checkPeer returns an error if no tunnel to a peer can be set up.
func checkPeer(p control.ClientPeer) error {
	if p.ID == (mesh.ID{}) {
		return errors.New("it has no fingerprint")
	}
	if _, err := wgtypes.ParseKey(p.PublicKey); err != nil {
		return fmt.Errorf("public key: %w", err)
	}
	if !routedTo([]control.ClientPeer{p}, p.Overlay) {
		return fmt.Errorf("its overlay address %v is not among its allowed IPs", p.Overlay)
	}
	host, port, err := net.SplitHostPort(p.Endpoint)
	if err != nil {
		return fmt.Errorf("endpoint: %w", err)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("endpoint: invalid port %q", port)
	}
	if a, err := netip.ParseAddr(host); err == nil && !isUnicast(a) || err != nil && !hostName.MatchString(strings.TrimSuffix(host, ".")) {
		return fmt.Errorf("endpoint: invalid host %q", host)
	}
	return nil
}

// isUnicast reports whether an address can be that of one other host's endpoint.
func isUnicast(a netip.Addr) bool {
	broadcast := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	return a.IsValid() && a.Zone() == "" && !a.Is4In6() && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() && !a.IsLinkLocalUnicast() && a != broadcast
}

// withoutAttached returns the peers without the allowed IPs that overlap the host's own
// networks, and describes each conflict. The host must not lose access to its own LAN. A
// network without an address of the host, to which only a route leads, as another VPN's,
// does not count if it is wider than the allowed IP: it keeps the rest of it. Neither does a
// narrower one behind a router: its own route stays in effect.
func withoutAttached(peers []control.ClientPeer, host netcfg.Facts) (kept []control.ClientPeer, conflicts []string) {
	hasAddress := func(n netip.Prefix) bool {
		return slices.ContainsFunc(host.Attached, func(l netcfg.LAN) bool { return l.Address.Masked() == n })
	}
	for _, p := range peers {
		p.AllowedIPs = slices.DeleteFunc(slices.Clone(p.AllowedIPs), func(a netip.Prefix) bool {
			if mesh.IsDefaultRoute(a) {
				return false // the host's other routes go before it
			}
			i := slices.IndexFunc(host.Nearby.Attached, func(n mesh.AttachedNetwork) bool {
				if n.Routed {
					return n.Prefix == a
				}
				return n.Prefix.Overlaps(a) && (n.Prefix.Bits() >= a.Bits() || hasAddress(n.Prefix))
			})
			if i >= 0 {
				conflicts = append(conflicts, fmt.Sprintf("%v overlaps %v", a, host.Nearby.Attached[i].Prefix))
			}
			return i >= 0
		})
		kept = append(kept, p)
	}
	return kept, conflicts
}

// checkConfig returns an error if a configuration is incomplete or invalid.
func checkConfig(c control.ClientConfig) error {
	if len(c.Peers) == 0 || len(c.Overlay) == 0 {
		return errors.New("a configuration without peers or addresses")
	}
	if c.Cluster == "" || len(c.Ranges) == 0 {
		return errUnverifiable
	}
	for _, p := range c.Peers {
		if p.ID == (mesh.ID{}) {
			return fmt.Errorf("%s: %w", p.Name, errUnverifiable)
		}
		if err := checkPeer(p); err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	return nil
}
