// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
)

// Format prints the device as String does, whatever the verb is. So no way of printing a
// state or a plan shows the private key.
func (d Device) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, d.String()) }

// String returns the device as one line in the style of ip(8) and wg(8).
func (d Device) String() string {
	up := "down"
	if d.Up {
		up = "up"
	}
	if d.Mark != 0 {
		up = fmt.Sprintf("fwmark %d %s", d.Mark, up)
	}
	return fmt.Sprintf("link %s wireguard %s mtu %d listen-port %d public-key %s %s",
		d.Name, d.Implementation, d.MTU, d.ListenPort, d.PublicKey, up)
}

// Format prints the settings without the private key, whatever the verb is.
func (s Settings) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// String returns the settings as one line, without the private key.
func (s Settings) String() string {
	return fmt.Sprintf("%s id %s bridge %s lans %v awaited %v heard %v", s.device(), s.ID, orNone(s.Bridge), s.LANs, s.Awaited, s.LearnedEndpoints)
}

// String returns the state as lines in the style of ip(8), wg(8), nft(8) and sysctl(8).
// An empty state returns the empty string.
func (s State) String() string {
	var b lines
	link := ""
	if s.Device != nil {
		link = s.Device.Name
		b.add("%s", s.Device)
	}
	for _, a := range s.Addresses {
		b.add("addr %s dev %s", a, link)
	}
	for _, p := range s.Peers {
		b.add("%s", p)
	}
	if s.VXLAN != nil {
		b.add("%s", s.VXLAN)
	}
	for _, e := range s.Forwarding {
		b.add("%s", e.on(s.VXLAN.Name))
	}
	for _, e := range s.Neighbors {
		b.add("%s", e.on(s.VXLAN.Name))
	}
	for _, r := range s.Routes {
		b.add("%s", r)
	}
	for _, dst := range s.Backstops {
		b.add("%s", backstopLine(dst))
	}
	for _, p := range s.Policies {
		b.add("%s", p)
	}
	if !s.Firewall.empty() {
		b.add("%s", s.Firewall)
	}
	for _, c := range s.Sysctls {
		b.add("%s", c)
	}
	return b.String()
}

// String returns the peer as one line.
func (p Peer) String() string {
	s := peerName(p.Key, p.Name)
	if p.Endpoint.IsValid() {
		s += " endpoint " + p.Endpoint.String()
	}
	s += " allowed-ips " + joinPrefixes(p.AllowedIPs)
	if p.Keepalive > 0 {
		s += " keepalive " + p.Keepalive.String()
	}
	if p.PresharedKey != (mesh.PresharedKey{}) {
		s += fmt.Sprintf(" preshared-key %v", p.PresharedKey)
	}
	if !p.LastHandshake.IsZero() {
		s += " latest-handshake " + p.LastHandshake.UTC().Format(time.RFC3339)
	}
	return s
}

// String returns the route as one line.
func (r Route) String() string {
	s := "route " + r.Destination.String()
	if r.Via.IsValid() {
		s += " via " + r.Via.String()
	}
	s += " dev " + orNone(r.Link) + tableLine(r.Destination)
	if r.OnLink {
		s += " onlink"
	}
	if r.Source.IsValid() {
		s += " src " + r.Source.String()
	}
	if r.MTU != 0 {
		s += fmt.Sprintf(" mtu %d", r.MTU)
	}
	return s
}

// backstopLine returns the blackhole route to a range as one line.
func backstopLine(dst netip.Prefix) string {
	return fmt.Sprintf("route blackhole %s%s metric %d", dst, tableLine(dst), BackstopMetric)
}

// tableLine names the routing table that has the route to a destination; "" for the main one.
func tableLine(dst netip.Prefix) string {
	if table := TableOf(dst); table != mainTable {
		return fmt.Sprintf(" table %d", table)
	}
	return ""
}

// String returns the table as the nft(8) commands that create it, without the hashes.
func (f Firewall) String() string {
	var b lines
	b.add("nft table inet %s", FirewallTable)
	for _, s := range f.Sets {
		b.add("%s", s)
	}
	for _, c := range f.Chains {
		b.add("nft chain %s type %s hook %s priority %d", c.Name, c.Type, c.Hook, c.Priority)
		for _, r := range c.Rules {
			b.add("nft rule %s %s", c.Name, r.Text)
		}
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// String returns the set in the style of nft(8).
func (s Set) String() string {
	return fmt.Sprintf("nft set %s type %s flags interval { %s }", s.Name, s.Type, joinPrefixes(s.Elements))
}

// String returns the parameter in the style of sysctl(8).
func (s Sysctl) String() string { return fmt.Sprintf("sysctl %s = %s", s.Key, s.Value) }

// String returns the plan for people to read: one change a line, in the order in which
// they are applied. + adds, ~ changes, - removes. An empty plan returns the empty string.
func (p Plan) String() string {
	var b lines
	switch {
	case p.Firewall == nil:
	case len(p.Sets) == 0:
		b.add("~ %s", strings.ReplaceAll(p.Firewall.String(), "\n", "\n  "))
	default:
		for _, s := range p.Sets {
			b.add("~ %s", s)
		}
	}
	for _, dst := range p.Backstops {
		b.add("+ %s", backstopLine(dst))
	}
	for _, p := range p.Policies {
		b.add("+ %s", p)
	}
	for _, c := range p.Accepts {
		b.add("%s", c)
	}
	if p.Device != nil {
		b.add("%s", p.Device)
	}
	if p.VXLAN != nil {
		b.add("%s", p.VXLAN)
	}
	for _, s := range p.Sysctls {
		b.add("~ %s", s)
	}
	for _, a := range p.Addresses {
		b.add("+ addr %s dev %s", a, p.link)
	}
	for _, e := range p.Forwarding {
		b.add("+ %s", e.on(p.vxlanLink))
	}
	for _, e := range p.Neighbors {
		b.add("+ %s", e.on(p.vxlanLink))
	}
	for _, r := range p.Routes {
		b.add("%s", r)
	}
	for _, pc := range p.Peers {
		b.add("%s", pc)
	}
	for _, r := range p.MovedRoutes {
		b.add("%s", r)
	}
	p.addStale(&b)
	return b.String()
}

// addStale prints the removals.
func (p Plan) addStale(b *lines) {
	for _, r := range p.StaleRoutes {
		b.add("- %s", r)
	}
	for _, e := range p.StaleNeighbors {
		b.add("- %s", e.on(p.vxlanLink))
	}
	for _, e := range p.StaleForwarding {
		b.add("- %s", e.on(p.vxlanLink))
	}
	if p.StaleVXLAN != "" {
		b.add("- link %s", p.StaleVXLAN)
	}
	for _, a := range p.StaleAddresses {
		b.add("- addr %s dev %s", a, p.link)
	}
	if p.StaleDevice != "" {
		b.add("- link %s", p.StaleDevice)
	}
	for _, p := range p.StalePolicies {
		b.add("- %s", p)
	}
	for _, dst := range p.StaleBackstops {
		b.add("- %s", backstopLine(dst))
	}
	if p.StaleFirewall {
		b.add("- nft table inet %s", FirewallTable)
	}
}

// String returns the change as one line, or as two if the device is replaced.
func (c DeviceChange) String() string {
	switch {
	case c.Replace:
		return fmt.Sprintf("- link %s\n+ %s", c.Device.Name, c.Device)
	case c.Create:
		return "+ " + c.Device.String()
	}
	s := "~ link " + c.Device.Name
	if c.SetMTU {
		s += fmt.Sprintf(" mtu %d", c.Device.MTU)
	}
	if c.SetPort {
		s += fmt.Sprintf(" listen-port %d", c.Device.ListenPort)
	}
	if c.SetKey {
		s += " public-key " + c.Device.PublicKey.String()
	}
	if c.SetMark {
		s += fmt.Sprintf(" fwmark %d", c.Device.Mark)
	}
	if c.SetUp {
		s += " up"
	}
	return s
}

// String returns the change as one line.
func (c RouteChange) String() string {
	if c.Old == nil {
		return "+ " + c.Route.String()
	}
	return fmt.Sprintf("~ %s (was %s)", c.Route, c.Old)
}

// String returns the change as one line.
func (pc PeerChange) String() string {
	sign := "~ "
	switch {
	case pc.Remove:
		sign = "- "
	case pc.Add:
		sign = "+ "
	}
	s := sign + peerName(pc.Key, pc.Name)
	if pc.Endpoint.IsValid() {
		s += " endpoint " + pc.Endpoint.String()
	}
	if len(pc.AllowedIPs) > 0 {
		s += " allowed-ips +" + strings.ReplaceAll(joinPrefixes(pc.AllowedIPs), " ", " +")
	}
	if pc.Keepalive != nil {
		s += " keepalive " + pc.Keepalive.String()
	}
	if pc.PresharedKey != nil {
		s += fmt.Sprintf(" preshared-key %v", *pc.PresharedKey)
	}
	return s
}

// peerName returns how a peer is printed: its key, and its name if it is known.
func peerName(key wgtypes.Key, name string) string {
	switch {
	case key == throwaway():
		return fmt.Sprintf("peer %s (throwaway)", key)
	case name != "":
		return fmt.Sprintf("peer %s (%s)", key, name)
	}
	return "peer " + key.String()
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// joinPrefixes returns prefixes separated by commas, as nft and wg expect them.
func joinPrefixes(prefixes []netip.Prefix) string {
	if len(prefixes) == 0 {
		return "none"
	}
	var out []string
	for _, p := range prefixes {
		out = append(out, p.String())
	}
	return strings.Join(out, ", ")
}

// lines builds a text line by line.
type lines struct{ strings.Builder }

func (l *lines) add(format string, args ...any) {
	l.WriteString(fmt.Sprintf(format, args...))
	l.WriteByte('\n')
}
