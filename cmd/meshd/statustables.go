// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/meshd/meshd/internal/control"
)

// peers has a row for each other node: what one wants to know at a glance.
func peers(s control.Status, now time.Time) [][]cell {
	rows := [][]cell{cells("NODE", "ALIVE", "PATH", "RTT", "LOSS", "PROBLEM")}
	for _, p := range s.Peers {
		row := []cell{{text: p.Name}, alive(p, now), way(p), {text: roundTripOf(p)}, loss(p.Path), {problemsOf(p, s.Problems), red}}
		rows = append(rows, row)
	}
	return rows
}

// alive says that a node is, or when it was last.
func alive(p control.Peer, now time.Time) cell {
	switch {
	case p.Alive:
		return cell{"yes", green}
	case p.LastSeen.IsZero():
		return cell{"no", red}
	}
	return cell{short(now.Sub(p.LastSeen)) + " ago", red}
}

// way says how packets get to a node: by the path of its own tunnel, or through others.
func way(p control.Peer) cell {
	switch {
	case p.Route.IsNone():
		return cell{"none", red}
	case p.Path.Kind == "", p.Route.IsLAN(): // no tunnel of its own, or vxlan
		return cell{p.Route.String(), plain}
	case p.Path.Kind == control.PathNone:
		return cell{"none", red}
	}
	how, painted := kind(p.Path), green
	if p.Path.Kind == control.PathRelayed || p.Path.Kind == control.PathTCP {
		painted = yellow
	}
	if !p.Path.Proved {
		how, painted = how+", not proved", yellow
	}
	return cell{how, painted}
}

// kind words the kind of a path, and through which node it goes.
func kind(p control.Path) string {
	if p.Relay == "" {
		return string(p.Kind)
	}
	return string(p.Kind) + " via " + p.Relay
}

// roundTripOf returns the round trip to a node, and what it was measured on: the whole route, if that is
// pinged, else the tunnel's path, else gossip.
func roundTripOf(p control.Peer) string {
	for _, measured := range []struct {
		rtt control.Milliseconds
		of  string
	}{{p.Route.RTT, "ping"}, {p.Path.RTT, "path"}, {p.RTT, "gossip"}} {
		if measured.rtt > 0 {
			return roundTrip(measured.rtt) + " " + measured.of
		}
	}
	return "-"
}

// loss returns how many of a path's last probes were lost.
func loss(p control.Path) cell {
	if p.Works() == "" || p.Works() == control.PathNone {
		return cell{text: "-"}
	}
	if p.Loss == 0 {
		return cell{text: "0%"}
	}
	return cell{fmt.Sprintf("%.0f%%", max(100*p.Loss, 1)), yellow}
}

// problemsOf returns the kinds of the problems that a node has.
func problemsOf(p control.Peer, all []control.Problem) string {
	var kinds []string
	if p.Role == control.RoleDown || p.Role == control.RoleDraining {
		kinds = append(kinds, string(p.Role))
	}
	if h := p.Route.Health; h != "" && h != control.RouteOK {
		kinds = append(kinds, string(h))
	}
	for _, problem := range all {
		if problem.Node == p.Name && !slices.Contains(kinds, string(problem.Kind)) {
			kinds = append(kinds, string(problem.Kind))
		}
	}
	return strings.Join(kinds, ", ")
}

// widePeers has a row for each other node with everything.
func widePeers(peers []control.Peer, now time.Time) [][]cell {
	rows := [][]cell{cells("NODE", "FINGERPRINT", "LOCATION", "ALIVE", "ROUTE", "HEALTH", "OVERLAY", "PODS", "INTERNAL IP", "PATH", "ENDPOINT", "HANDSHAKE", "RTT", "RECEIVED", "SENT", "SECRETS")}
	for _, p := range peers {
		rows = append(rows, append([]cell{{text: p.Name}, {text: p.ID.String()}, {text: orDash(p.Location) + role(p.Role)}, alive(p, now)}, cells(
			p.Route.String(), health(p.Route), join(p.Overlay), join(p.PodCIDRs), join(p.InternalIPs), path(p.Path, now),
			endpoint(p.Endpoint), age(p.LastHandshake, now), roundTripOf(p), size(p.Received), size(p.Sent), join(p.Secrets))...))
	}
	return rows
}

// clients writes a table of the clients.
func (v view) clients(clients []control.ClientStatus, now time.Time) string {
	header := []string{"CLIENT", "OVERLAY", "NETWORKS", "ACCESS", "HANDSHAKE"}
	if v.wide {
		header = append(header, "ADDED BY", "ENDPOINT", "RECEIVED", "SENT")
	}
	rows := [][]cell{cells(header...)}
	for _, c := range clients {
		row := cells(c.Name, join(c.Overlay), join(c.Networks), join(c.Access), age(c.LastHandshake, now), c.AddedBy, endpoint(c.Endpoint), size(c.Received), size(c.Sent))
		rows = append(rows, row[:len(header)])
	}
	return v.table(rows)
}

// clusters has a row for each way to another cluster.
func clusters(clusters []control.LinkedCluster) [][]cell {
	rows := [][]cell{cells("CLUSTER", "NETWORKS", "THROUGH")}
	for _, c := range clusters {
		name, networks := c.Name, join(c.Networks)
		if len(c.Through) == 0 {
			rows = append(rows, cells(name, networks, "-"))
		}
		for _, l := range c.Through {
			rows = append(rows, cells(name, networks, fmt.Sprintf("%s (%s)", l.Name, l.State)))
			name, networks = "", ""
		}
	}
	return rows
}

// counters has a row for each reason for which gossip has dropped something.
func counters(all []control.Counter) (rows [][]cell) {
	for _, c := range all {
		rows = append(rows, cells("  "+c.Reason, fmt.Sprint(c.Count), c.Meaning))
	}
	return rows
}

// problems writes problems, each with what to do.
func (v view) problems(b *strings.Builder, heading string, all []control.Problem, c color) {
	if len(all) == 0 {
		return
	}
	if !v.colors {
		c = plain
	}
	b.WriteString("\n" + c.paint(heading+":") + "\n")
	for _, p := range all {
		b.WriteString(wrap("  ", p.Node+": "+p.Text, v.width()))
		b.WriteString(wrap("    → ", p.Advice, v.width()))
	}
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
	how := kind(p)
	switch {
	case p.Kind == "": // there is no tunnel to it
		return "-"
	case p.Kind == control.PathNone:
		return how
	case !p.Proved:
		return how + ", not proved"
	}
	s := fmt.Sprintf("%s for %s", how, short(now.Sub(p.Since)))
	if p.RTT > 0 {
		s += ", " + roundTrip(p.RTT)
	}
	if p.Loss > 0 {
		s += fmt.Sprintf(", %.0f%% lost", 100*p.Loss)
	}
	return s
}

// roundTrip prints a round-trip time with two or three digits, "" if it is not known.
func roundTrip(m control.Milliseconds) string {
	ms := float64(m) / float64(time.Millisecond)
	switch {
	case m == 0:
		return ""
	case ms < 1:
		return fmt.Sprintf("%.2fms", max(ms, 0.01))
	case ms < 10:
		return fmt.Sprintf("%.1fms", ms)
	}
	return fmt.Sprintf("%.0fms", ms)
}

// endpoint prints the endpoint of a tunnel, or a dash for none.
func endpoint(a netip.AddrPort) string {
	if !a.IsValid() {
		return "-"
	}
	return a.String()
}

// join lists values, or returns a dash for none.
func join[T any](vs []T) string {
	s := make([]string, len(vs))
	for i, v := range vs {
		s[i] = fmt.Sprint(v)
	}
	return orDash(strings.Join(s, ", "))
}

func orDash(s string) string { return cmp.Or(s, "-") }

// age formats how long ago something was.
func age(t, now time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return short(now.Sub(t)) + " ago"
}

// short formats a time in its largest unit, with the next one while the number is small.
func short(d time.Duration) string {
	d = max(d, 0)
	const day = 24 * time.Hour
	for _, unit := range []struct {
		of, next         time.Duration
		letter, nextName string
	}{{day, time.Hour, "d", "h"}, {time.Hour, time.Minute, "h", "m"}, {time.Minute, time.Second, "m", "s"}} {
		if d < unit.of {
			continue
		}
		n, rest := d/unit.of, d%unit.of/unit.next
		if n >= 10 || rest == 0 {
			return fmt.Sprintf("%d%s", n, unit.letter)
		}
		return fmt.Sprintf("%d%s%d%s", n, unit.letter, rest, unit.nextName)
	}
	return fmt.Sprintf("%ds", d/time.Second)
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
