// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"path/filepath"
)

// Six is the smallest mesh that has everything about locations: three nodes share a LAN,
// two share another one, and one is alone.
type Six struct {
	A, B  *Site
	Nodes []*Node // a1, a2, a3, b1, b2, c
	// Secret and Join are in their configuration files: all join a1 and b1, so neither
	// location depends on the other.
	Secret string
	Join   []string
}

// Location returns the location of a host: the name of its site, or "" without one.
func (h *Host) Location() string {
	if h.link.site == nil {
		return ""
	}
	return h.link.site.Name
}

// Six makes six nodes in clouds. Their files have their locations and the given further
// lines. No daemon runs yet.
func (l *Lab) Six(ctx context.Context, binary string, more ...string) (*Six, error) {
	binary, err := filepath.Abs(binary) // commands on hosts run in /
	if err != nil {
		return nil, fmt.Errorf("find meshd: %w", err)
	}
	s := &Six{}
	for _, place := range []struct {
		site **Site
		name string
		host []string
	}{{&s.A, "a", []string{"a1", "a2", "a3"}}, {&s.B, "b", []string{"b1", "b2"}}} {
		site, err := l.Site(ctx, place.name, SiteOptions{Underlay: NAT})
		if err != nil {
			return nil, err
		}
		*place.site = site
		for _, name := range place.host {
			h, err := site.Host(ctx, name)
			if err != nil {
				return nil, err
			}
			s.Nodes = append(s.Nodes, NewNode(h, binary))
		}
	}
	lone, err := l.Host(ctx, "c", NAT)
	if err != nil {
		return nil, err
	}
	s.Nodes = append(s.Nodes, NewNode(lone, binary))
	s.Join = []string{s.Nodes[0].Public().String(), s.Nodes[3].Public().String()}
	if s.Secret, err = s.Nodes[0].NewSecret(ctx); err != nil {
		return nil, err
	}
	for _, n := range s.Nodes {
		if err := n.Configure(s.Config(n, more...), s.Secret); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Config returns a node's configuration file with further lines at the end; the first
// ones may belong to the section node.
func (s *Six) Config(n *Node, more ...string) string {
	if location := n.Location(); location != "" {
		more = append([]string{"  location: " + location}, more...)
	}
	return Config(n.Name, s.Join, more...)
}
