// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// maxLines is how many tunnels are drawn one by one. More would be unreadable, and take
// minutes to lay out: then, in mode cross, the tunnels between two locations become one
// line; in other modes all tunnels become a star.
const maxLines = 30

// maxLabels is how many lines have a label, at most.
const maxLabels = 10

// DOT returns the graph in the language of Graphviz. Locations are clusters, which dot
// draws as boxes. circo, which arranges tunnels in a ring, does not, so each location has
// a color too.
func (g Graph) DOT() string {
	d := dotWriter{Graph: g, single: g.singleClients(), keys: make(map[ID]string), colors: make(map[string]int)}
	d.line("graph meshd {")
	d.line("  graph [label=%s labelloc=t fontname=Helvetica fontsize=16 splines=true overlap=false nodesep=0.3 ranksep=0.9 mindist=1.5]", quote(g.title()))
	d.line("  node [shape=box style=\"rounded,filled\" fillcolor=white fontname=Helvetica fontsize=10 margin=\"0.12,0.06\"]")
	d.line("  edge [color=\"#9aa0a6\" fontname=Helvetica fontsize=9]")
	d.name()
	for i := 0; i < len(g.Nodes); {
		n := 1
		for i+n < len(g.Nodes) && g.Nodes[i].Location != "" && g.Nodes[i+n].Location == g.Nodes[i].Location {
			n++
		}
		d.location(g.Nodes[i : i+n])
		i += n
	}
	d.tunnels()
	d.clients()
	d.clusters()
	d.allClients()
	d.line("}")
	return d.String()
}

func (d *dotWriter) tooManyTunnels() bool { return len(d.Tunnels) > maxLines }

// title summarizes the graph.
func (g Graph) title() string {
	s := fmt.Sprintf("%s: %s, mode %s, %s", g.Cluster, count(len(g.Nodes), "node"), g.Mode, count(len(g.Tunnels), "tunnel"))
	if n := len(g.singleClients()); n > 0 {
		s += ", " + count(n, "client")
	}
	if n := len(g.Clusters); n > 0 {
		s += ", joined to " + count(n, "cluster")
	}
	return s
}

// singleClients returns the clients that are not link nodes of another cluster, which is drawn in their
// place.
func (g Graph) singleClients() []GraphClient {
	isLinkNode := make(map[ID]bool)
	for _, c := range g.Clusters {
		for _, id := range c.Clients {
			isLinkNode[id] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(g.Clients), func(c GraphClient) bool { return isLinkNode[c.ID] })
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// dotWriter holds what the parts of the drawing share.
type dotWriter struct {
	Graph
	strings.Builder
	single []GraphClient // see singleClients
	keys   map[ID]string // the nodes' identifiers in the text
	colors map[string]int
}

func (d *dotWriter) line(format string, args ...any) {
	d.WriteString(fmt.Sprintf(format+"\n", args...))
}

// name chooses the nodes' identifiers in the text: their names, if these are unique.
func (d *dotWriter) name() {
	named := make(map[string]int)
	for _, n := range d.Nodes {
		named[n.Name]++
	}
	for _, n := range d.Nodes {
		d.keys[n.ID] = quote(n.Name)
		if named[n.Name] > 1 {
			d.keys[n.ID] = quote(n.Name + "-" + n.ID.String()[:8])
		}
	}
}

// location draws the nodes of a LAN, or one node without a location.
func (d *dotWriter) location(nodes []GraphNode) {
	name := nodes[0].Location
	if name == "" {
		d.node("  ", nodes[0], "white")
		return
	}
	// The palettes of graphviz.org/doc/info/colors.html, light enough for text.
	color := fmt.Sprintf("/set312/%d", len(d.colors)%12+1)
	d.colors[name] = len(d.colors)
	d.line("  subgraph %s {", quote("cluster_"+name))
	d.line("    graph [label=%s fontname=\"Helvetica-Bold\" fontsize=12 style=\"rounded,filled\" color=\"#bdc1c6\" fillcolor=\"#f8f9fa\" margin=12]", quote(name))
	for _, n := range nodes {
		d.node("    ", n, color)
	}
	in := make(map[ID]bool)
	for _, n := range nodes {
		in[n.ID] = true
	}
	for _, p := range d.Links {
		if in[p.A] {
			// The gateway comes first, so that dot puts it above.
			d.line("    %s -- %s", d.keys[p.B], d.keys[p.A])
		}
	}
	if d.Mode == ModeCross && len(nodes) > 1 {
		d.line("    %s [shape=ellipse style=filled fillcolor=%q label=%s margin=0.05]", quote("LAN of "+name), color, quote(name+" LAN"))
		for _, n := range nodes {
			d.line("    %s -- %s", quote("LAN of "+name), d.keys[n.ID])
		}
	}
	d.line("  }")
}

// node draws one node.
func (d *dotWriter) node(indent string, n GraphNode, color string) {
	label := []string{n.Name}
	var marks []string
	if n.Gateway {
		marks = append(marks, "gateway")
	}
	if n.NAT {
		marks = append(marks, "behind NAT")
	}
	if len(marks) > 0 {
		label = append(label, strings.Join(marks, ", "))
	}
	for _, a := range n.Overlay {
		label = append(label, a.String())
	}
	for _, p := range n.PodCIDRs {
		label = append(label, p.String())
	}
	more := ""
	if n.Gateway {
		more = " penwidth=2.5"
	}
	d.line("%s%s [label=%s fillcolor=%q%s]", indent, d.keys[n.ID], quote(strings.Join(label, "\n")), color, more)
}

// tunnels draws the tunnels.
func (d *dotWriter) tunnels() {
	switch {
	case d.tooManyTunnels() && d.Mode == ModeCross:
		d.tunnelsByLocation()
	case d.tooManyTunnels():
		d.star()
	default:
		for _, p := range d.Tunnels {
			d.line("  %s -- %s [%s]", d.keys[p.A], d.keys[p.B], p.style())
		}
	}
}

// style returns how a tunnel is drawn: solid where packets go straight.
func (p GraphPair) style() string {
	color, more := "#1a73e8", ""
	switch p.Path {
	case "relayed", "tcp":
		more = " style=dashed"
	case "none":
		color, more = "#d93025", " style=dotted"
	}
	if p.Path != "" {
		more += " label=" + quote(p.Path)
	}
	return fmt.Sprintf("color=%q penwidth=1.6%s", color, more)
}

// clients draws the clients that are not link nodes of another cluster.
func (d *dotWriter) clients() {
	for _, c := range d.single {
		label := []string{c.Name, "client"}
		for _, a := range c.Overlay {
			label = append(label, a.String())
		}
		key := quote("client " + c.Name)
		d.line("  %s [shape=box style=\"rounded,dashed\" label=%s]", key, quote(strings.Join(label, "\n")))
		d.linesToHomes(key)
	}
}

// clusters draws each other cluster once: with lines to the nodes that have links to it, and, if its
// link nodes are clients, to their homes.
func (d *dotWriter) clusters() {
	for _, c := range d.Clusters {
		label := []string{c.Name, "cluster"}
		for _, p := range c.Networks {
			label = append(label, p.String())
		}
		key := quote("cluster " + c.Name)
		d.line("  %s [shape=box3d style=filled fillcolor=\"#e6f4ea\" label=%s]", key, quote(strings.Join(label, "\n")))
		d.dashedLines(c.Nodes, key)
		if len(c.Clients) > 0 {
			d.linesToHomes(key)
		}
	}
}

// linesToHomes draws a line from each home of the clients. If that were too many lines, one symbol
// stands for all homes, see allClients.
func (d *dotWriter) linesToHomes(key string) {
	if d.tooManyClients() {
		d.line("  \"all clients\" -- %s [color=\"#188038\" style=dashed]", key)
		return
	}
	d.dashedLines(d.Clients[0].Homes, key)
}

func (d *dotWriter) dashedLines(from []ID, key string) {
	for _, id := range from {
		d.line("  %s -- %s [color=\"#188038\" style=dashed constraint=false]", d.keys[id], key)
	}
}

// tooManyClients reports whether the lines from all homes to all clients are too many to be drawn. All
// clients have the same homes.
func (d *dotWriter) tooManyClients() bool {
	return len(d.Clients) > 0 && (len(d.single)+len(d.Clusters))*len(d.Clients[0].Homes) > maxLines
}

// allClients draws the symbol for all homes.
func (d *dotWriter) allClients() {
	if d.tooManyClients() {
		d.line("  \"all clients\" [shape=ellipse fillcolor=\"#e6f4ea\" color=\"#188038\" label=%s]", quote(fmt.Sprintf("%s\nwith a tunnel to each of %s", count(len(d.Clients), "client"), count(len(d.Clients[0].Homes), "node"))))
	}
}

// star draws one symbol for all tunnels, with a line to each of their ends.
func (d *dotWriter) star() {
	d.line("  \"all tunnels\" [shape=ellipse fillcolor=\"#e8f0fe\" color=\"#1a73e8\" label=%s]", quote(count(len(d.Tunnels), "tunnel")+"\namong all of these"))
	end := make(map[ID]bool)
	for _, p := range d.Tunnels {
		end[p.A], end[p.B] = true, true
	}
	for _, n := range d.Nodes {
		if end[n.ID] {
			d.line("  \"all tunnels\" -- %s [color=\"#1a73e8\" penwidth=1.6]", d.keys[n.ID])
		}
	}
}

// tunnelsByLocation draws the tunnels between two locations as one line.
func (d *dotWriter) tunnelsByLocation() {
	location := make(map[ID]string)
	shared := make(map[string]int)
	for _, n := range d.Nodes {
		location[n.ID] = n.Location
		shared[n.Location]++
	}
	place := func(id ID) string {
		if l := location[id]; l != "" && shared[l] > 1 {
			return quote("LAN of " + l)
		}
		return d.keys[id]
	}
	type line struct{ a, b string }
	tunnels := make(map[line]int)
	var order []line
	for _, p := range d.Tunnels {
		k := line{place(p.A), place(p.B)}
		if tunnels[k] == 0 {
			order = append(order, k)
		}
		tunnels[k]++
	}
	for _, k := range order {
		label := ""
		if n := tunnels[k]; n > 1 && len(order) <= maxLabels {
			label = fmt.Sprintf(" label=%q", count(n, "tunnel"))
		}
		d.line("  %s -- %s [color=\"#1a73e8\" penwidth=%.1f%s]", k.a, k.b, min(1+float64(tunnels[k])/20, 4), label)
	}
}

// quote returns a string as DOT requires it.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(cmp.Or(s, " ")) + `"`
}
