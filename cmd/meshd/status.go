// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/meshd/meshd/internal/control"
)

// printStatus writes a status for a person: this node, the other nodes, the clients, the
// clusters that are joined to this one, and problems with advice.
func printStatus(w io.Writer, s control.Status, now time.Time) error {
	var b strings.Builder
	printNode(&b, s)
	if s.Node.Alone {
		at := "ADDRESS"
		if len(s.Node.JoinAt) > 0 {
			at = yamlList(s.Node.JoinAt)
		}
		fmt.Fprintf(&b, "\nThis node is alone. Others join it with the same secret, and in their configuration:\n  join: [%s]\n", at)
	}
	if len(s.Peers) > 0 {
		b.WriteString("\n")
		printPeers(&b, s.Peers, now)
	}
	if len(s.Clients) > 0 {
		b.WriteString("\n")
		if err := printClients(&b, s.Clients, now); err != nil {
			return err
		}
	}
	if len(s.Clusters) > 0 {
		b.WriteString("\n")
		printClusters(&b, s.Clusters)
	}
	if s.Reconcile.Error != "" {
		fmt.Fprintf(&b, "\nThe last reconcile failed:\n")
		for line := range strings.Lines(s.Reconcile.Error) {
			fmt.Fprintf(&b, "  %s\n", strings.TrimSuffix(line, "\n"))
		}
	}
	if len(s.Problems) > 0 {
		fmt.Fprintf(&b, "\nProblems:\n")
		for _, p := range s.Problems {
			fmt.Fprintf(&b, "  %s: %s\n    → %s\n", p.Node, p.Text, p.Advice)
		}
	}
	if len(s.Notes) > 0 {
		fmt.Fprintf(&b, "\nNotes:\n")
		for _, p := range s.Notes {
			fmt.Fprintf(&b, "  %s: %s\n    → %s\n", p.Node, p.Text, p.Advice)
		}
	}
	printCounters(&b, s.Counters)
	_, err := io.WriteString(w, b.String())
	return err
}

// yamlList formats addresses as the elements of a list in YAML, where those of IPv6 need
// quotes.
func yamlList(addrs []string) string {
	out := make([]string, len(addrs))
	for i, a := range addrs {
		if out[i] = a; strings.HasPrefix(a, "[") {
			out[i] = strconv.Quote(a)
		}
	}
	return strings.Join(out, ", ")
}

// printCounters lists how many packets and objects gossip has dropped, by reason.
func printCounters(w io.Writer, counters map[string]uint64) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(counters) > 0 {
		fmt.Fprintf(t, "\nDropped by gossip since the start:\n")
	}
	for _, reason := range slices.Sorted(maps.Keys(counters)) {
		fmt.Fprintf(t, "  %s\t%d\n", reason, counters[reason])
	}
	t.Flush()
}

func printNode(w io.Writer, s control.Status) {
	n := s.Node
	state := "ready"
	switch {
	case n.Slot < 0 && !slices.ContainsFunc(s.Peers, func(p control.Peer) bool { return p.Alive }):
		state = "looking for the mesh"
	case !n.Ready:
		state = "not ready yet"
	}
	var notes []string
	if n.NAT {
		notes = append(notes, "behind NAT")
	}
	if len(n.Endpoints) > 0 && !n.Open {
		notes = append(notes, "not reached by other nodes so far")
	}
	note := ""
	if len(notes) > 0 {
		note = " (" + strings.Join(notes, ", ") + ")"
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "Node:\t%s, %s\n", n.Name, state)
	fmt.Fprintf(t, "Fingerprint:\t%v\n", n.ID)
	if n.Location != "" {
		fmt.Fprintf(t, "Location:\t%s%s\n", n.Location, role(n.Role))
	}
	fmt.Fprintf(t, "Overlay:\t%s\n", join(n.Overlay))
	fmt.Fprintf(t, "Pods:\t%s\n", join(n.PodCIDRs))
	fmt.Fprintf(t, "Endpoint:\t%s%s\n", join(n.Endpoints), note)
	heading := "Mapped:"
	for _, m := range n.PortMappings {
		note := ""
		if !m.Public {
			note = ", which is behind NAT itself"
		}
		fmt.Fprintf(t, "%s\t%v to port %d, by %s of the router %v%s\n", heading, m.External, m.Port, m.Protocol, m.Router, note)
		heading = ""
	}
	heading = "Internal IP:"
	for _, i := range n.InternalIPs {
		fmt.Fprintf(t, "%s\t%v\n", heading, i)
		heading = ""
	}
	heading = "Not used:"
	for _, i := range n.OtherPrivate {
		fmt.Fprintf(t, "%s\t%v\n", heading, i)
		heading = ""
	}
	heading = "Networks:"
	for _, s := range n.Networks {
		fmt.Fprintf(t, "%s\t%v, reached through %s\n", heading, s.Network, s.Through)
		heading = ""
	}
	device := "-"
	if d := s.Device; d.Name != "" {
		device = fmt.Sprintf("%s, %s WireGuard, port %d, MTU %d", d.Name, d.Implementation, d.ListenPort, d.MTU)
	}
	fmt.Fprintf(t, "Device:\t%s\n", device)
	if len(n.Relays) > 0 {
		fmt.Fprintf(t, "Reached via:\t%s, by sealed packets\n", join(n.Relays))
	}
	if r := s.Relay; r != nil {
		fmt.Fprintf(t, "Relay:\tfor %d nodes, %s forwarded\n", r.Nodes, size(int64(r.Bytes)))
	}
	t.Flush() // writing to a strings.Builder never fails
}

func printPeers(w io.Writer, peers []control.Peer, now time.Time) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tLOCATION\tALIVE\tROUTE\tHEALTH\tOVERLAY\tPODS\tINTERNAL IP\tPATH\tENDPOINT\tHANDSHAKE\tRTT\tRECEIVED\tSENT")
	for _, p := range peers {
		alive := "no"
		if p.Alive {
			alive = "yes"
		}
		fmt.Fprintf(t, "%s\t%s%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.Name, orDash(p.Location), role(p.Role), alive, p.Route, health(p.Route), join(p.Overlay), join(p.PodCIDRs),
			join(p.InternalIPs), path(p.Path, now), endpoint(p.Endpoint), age(p.LastHandshake, now), orDash(roundTrip(p.RTT)), size(p.Received), size(p.Sent))
	}
	t.Flush()
}

func printClusters(w io.Writer, clusters []control.LinkedCluster) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CLUSTER\tNETWORKS\tTHROUGH")
	for _, c := range clusters {
		var through []string
		for _, l := range c.Through {
			through = append(through, fmt.Sprintf("%s (%s)", l.Name, l.State))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", c.Name, join(c.Networks), orDash(strings.Join(through, ", ")))
	}
	t.Flush()
}

// role formats the role of a node behind its location. The roles that most nodes have are
// left out.
func role(r control.Role) string {
	switch r {
	case "", control.RoleMember, control.RoleNever:
		return ""
	}
	return " (" + string(r) + ")"
}

// health words the health of a route, with its round-trip time.
func health(p control.Route) string {
	if p.RTT == 0 {
		return orDash(string(p.Health))
	}
	return string(p.Health) + ", " + roundTrip(p.RTT)
}

// path words how WireGuard's packets travel to a peer, since when, the round trip, and what is
// lost.
func path(p control.Path, now time.Time) string {
	how := string(p.Kind)
	if p.Relay != "" {
		how += " via " + p.Relay
	}
	switch {
	case p.Kind == "": // there is no tunnel to it
		return "-"
	case p.Kind == control.PathNone:
		return how
	case !p.Proved:
		return how + ", not proved"
	}
	s := fmt.Sprintf("%s for %v", how, max(now.Sub(p.Since), 0).Round(time.Second))
	if p.RTT > 0 {
		s += ", " + roundTrip(p.RTT)
	}
	if p.Loss > 0 {
		s += fmt.Sprintf(", %.0f%% lost", 100*p.Loss)
	}
	return s
}

// roundTrip prints a round-trip time, "" if it is not known.
func roundTrip(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return d.Round(10 * time.Microsecond).String()
}

// endpoint prints the endpoint of a tunnel, or a dash for none.
func endpoint(a netip.AddrPort) string {
	if !a.IsValid() {
		return "-"
	}
	return a.String()
}

// join lists values, or returns a dash for none.
func join[T netip.Addr | netip.Prefix | string](vs []T) string {
	s := make([]string, len(vs))
	for i, v := range vs {
		s[i] = fmt.Sprint(v)
	}
	return orDash(strings.Join(s, ","))
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// age formats how long ago something was.
func age(t, now time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return max(now.Sub(t), 0).Round(time.Second).String() + " ago"
}

// size formats a number of bytes with a binary prefix.
func size(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	f, i := float64(n), 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}
