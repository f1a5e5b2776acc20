// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/test/lab"
)

// The hosts of the topology nat about which wantedPath asks.
const (
	cloudHost   = "cloud"  // everybody reaches it
	changesPort = "home3"  // its router gives it another port for each destination
	withoutUDP  = "office" // its network drops UDP
)

// sites are those of the topology nat, each with a router and one host.
var sites = []struct {
	name   string
	router lab.Router
	what   string // for people
}{
	{"home1", lab.Router{Mapping: lab.PortPreserving}, "a router that lets in only answers"},
	{"home2", lab.Router{Mapping: lab.PortPreserving}, "a router that lets in only answers"},
	{changesPort, lab.Router{Mapping: lab.PortDependent}, "a router that lets in only answers, and changes ports"},
	{withoutUDP, lab.Router{BlockUDP: true}, "a router that drops UDP"},
}

// pathLimit is for all paths to be as they should be. Two nodes that have not met at once try
// it again after 5 minutes.
const pathLimit = 6 * time.Minute

// pollPeriod is the first pause between two looks at the paths.
const pollPeriod = 500 * time.Millisecond

// natHosts makes the hosts of the topology nat with their files: all join the one in the cloud.
func natHosts(ctx context.Context, l *lab.Lab, binary string) ([]*lab.Node, error) {
	binary, err := filepath.Abs(binary) // commands on hosts run in /
	if err != nil {
		return nil, fmt.Errorf("find meshd: %w", err)
	}
	h, err := l.Host(ctx, cloudHost, lab.NAT)
	if err != nil {
		return nil, err
	}
	nodes := []*lab.Node{lab.NewNode(h, binary)}
	for _, s := range sites {
		site, err := l.Site(ctx, s.name, lab.SiteOptions{Underlay: lab.Home, Router: s.router})
		if err != nil {
			return nil, err
		}
		if h, err = site.Host(ctx, s.name); err != nil {
			return nil, err
		}
		nodes = append(nodes, lab.NewNode(h, binary))
	}
	secret, err := nodes[0].NewSecret(ctx)
	if err != nil {
		return nil, err
	}
	for i, n := range nodes {
		// They start at the same moment. A node without UDP may hear too late that another
		// one has claimed the slot that it chose.
		slot := fmt.Sprintf("  pod-cidr: [10.42.%d.0/24]", i)
		if err := n.Configure(lab.Config(n.Name, []string{nodes[0].Public().String()}, slot), secret); err != nil {
			return nil, err
		}
	}
	return nodes, nil
}

// routerOf says for people what router a host of the topology nat is behind.
func routerOf(host string) string {
	for _, s := range sites {
		if s.name == host {
			return s.what
		}
	}
	return "a 1:1 NAT"
}

// wantedPath is how packets travel between two hosts of the topology nat.
func wantedPath(a, b string) control.PathKind {
	is := func(host string) bool { return a == host || b == host }
	switch {
	case is(withoutUDP):
		return control.PathTCP
	case is(changesPort) && !is(cloudHost):
		return control.PathRelayed
	default:
		return control.PathDirect
	}
}

// nodePath is the path from one node to another one.
type nodePath struct {
	from, to string
	path     control.Path
}

// String is the path for people.
func (p nodePath) String() string {
	text := fmt.Sprintf("%s to %s: %s", p.from, p.to, p.path.Kind)
	if p.path.Relay != "" {
		text += " via " + p.path.Relay
	}
	if !p.path.Proved {
		text += ", not proved"
	}
	return text
}

// settlePaths waits until all paths are as they should be, and prints them. It returns how
// many there are of each kind.
func settlePaths(ctx context.Context, nodes []*lab.Node) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, pathLimit)
	defer cancel()
	began := time.Now()
	var last error
	for {
		paths, err := readPaths(ctx, nodes)
		if err == nil {
			err = checkPaths(paths, len(nodes))
		}
		switch {
		case err == nil:
			for _, p := range paths {
				fmt.Println("path", p)
			}
			fmt.Println()
			return countPaths(paths), nil
		case ctx.Err() != nil:
			return "", fmt.Errorf("wait until paths are as they should be: %w\n%w", ctx.Err(), last)
		}
		last = err
		select {
		case <-time.After(lab.Pause(pollPeriod, began)):
		case <-ctx.Done():
		}
	}
}

// readPaths asks all nodes for their paths.
func readPaths(ctx context.Context, nodes []*lab.Node) ([]nodePath, error) {
	var paths []nodePath
	for _, n := range nodes {
		s, err := n.Status(ctx)
		if err != nil {
			return nil, err
		}
		for _, p := range s.Peers {
			paths = append(paths, nodePath{n.Name, p.Name, p.Path})
		}
	}
	return paths, nil
}

// checkPaths returns an error that names every path that is not as it should be.
func checkPaths(paths []nodePath, nodes int) error {
	var errs []error
	if want := nodes * (nodes - 1); len(paths) != want {
		errs = append(errs, fmt.Errorf("got %d paths, want %d", len(paths), want))
	}
	for _, p := range paths {
		if want := wantedPath(p.from, p.to); p.path.Kind != want || !p.path.Proved {
			errs = append(errs, fmt.Errorf("%s, want %s", p, want))
		}
	}
	return errors.Join(errs...)
}

// countPaths says how many paths there are of each kind.
func countPaths(paths []nodePath) string {
	count := map[control.PathKind]int{}
	for _, p := range paths {
		count[p.path.Kind]++
	}
	var all []string
	for _, k := range []control.PathKind{control.PathDirect, control.PathRelayed, control.PathTCP} {
		all = append(all, fmt.Sprintf("%d %s", count[k], k))
	}
	return strings.Join(all, ", ")
}
