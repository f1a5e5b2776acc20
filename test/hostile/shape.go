// SPDX-License-Identifier: Apache-2.0

//go:build hostile

package hostile

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/meshd/meshd/test/lab"
)

// insiderName begins the names of all nodes that an attacker makes up.
const insiderName = "insider"

// shapeOf returns a node's view of the mesh as lines: its own addresses, the settings in
// force, the other nodes with their roles and routes, its routes and its tunnels.
func shapeOf(ctx context.Context, n *lab.Node) ([]string, error) {
	s, err := n.Status(ctx)
	if err != nil {
		return nil, err
	}
	o := s.Node
	lines := []string{
		fmt.Sprintf("node %s %s role %s slot %d overlay %v pods %v endpoints %v nat %t ready %t",
			o.ID, o.Name, o.Role, o.Slot, o.Overlay, o.PodCIDRs, o.Endpoints, o.NAT, o.Ready),
		fmt.Sprintf("cluster %+v", s.Cluster),
	}
	for _, p := range s.Peers {
		if !strings.HasPrefix(p.Name, insiderName) {
			lines = append(lines, fmt.Sprintf("peer %s %s role %s alive %t path %s %v overlay %v pods %v internal %v",
				p.ID, p.Name, p.Role, p.Alive, p.Route.Kind, p.Route.Via, p.Overlay, p.PodCIDRs, p.InternalIPs))
		}
	}
	for _, command := range []string{"ip -4 route show table all", "ip -6 route show table all", "wg show meshd0 allowed-ips"} {
		words := strings.Fields(command)
		out, err := n.Run(ctx, words[0], words[1:]...)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(out) {
			fields := strings.Fields(line)
			switch {
			case strings.Contains(line, "fe80:"), strings.Contains(line, "ff00:"): // the kernel's own, in its own time
			case words[0] == "wg":
				for _, prefix := range fields[1:] {
					lines = append(lines, "tunnel "+fields[0]+" "+prefix)
				}
			default:
				lines = append(lines, "route "+strings.Join(fields, " "))
			}
		}
	}
	slices.Sort(lines)
	return lines, nil
}

// differ returns the lines that are gone, and new lines that contain none of the words.
func differ(before, after []string, about ...string) []string {
	var all []string
	for _, line := range before {
		if !slices.Contains(after, line) {
			all = append(all, "- "+line)
		}
	}
	for _, line := range after {
		if !slices.Contains(before, line) && !slices.ContainsFunc(about, func(word string) bool { return strings.Contains(line, word) }) {
			all = append(all, "+ "+line)
		}
	}
	return all
}
