// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/wait"
	"github.com/meshd/meshd/test/lab"
)

// underlay is what packets meet on their way into a site: 80 ms there and back between two sites.
const underlay = "delay 40ms loss 1%"

const (
	// patience only distinguishes slow from never: a gateway that has failed often waits five minutes
	// until it may be one again.
	patience = 10 * time.Minute
	// pollPeriod is short beside what is measured.
	pollPeriod = 20 * time.Millisecond
)

// site is one of three locations: a gateway, and a server that uses it and replaces it when it fails.
type site struct {
	name    string
	gateway *lab.Node
	server  *member
}

func (s *site) hosts() []*lab.Host { return []*lab.Host{s.gateway.Host, s.server.Host} }

// cluster is three sites with a member of etcd each.
type cluster struct {
	lab   *lab.Lab
	sites []*site
	stop  context.CancelFunc // ends the writes
	wrote sync.WaitGroup
}

// options are those of the command.
type options struct {
	meshd string // the executable
	netem bool   // have delay and loss between sites
}

// newCluster starts the nodes, and then etcd with the given timings on the servers.
func newCluster(ctx context.Context, o options, timings mesh.EtcdTimings) (*cluster, error) {
	l, err := lab.New(ctx)
	if err != nil {
		return nil, err
	}
	c := &cluster{lab: l, stop: func() {}}
	if err := c.setUp(ctx, o, timings); err != nil {
		return nil, errors.Join(fmt.Errorf("%w\n%s", err, c.report()), c.close())
	}
	return c, nil
}

func (c *cluster) setUp(ctx context.Context, o options, timings mesh.EtcdTimings) error {
	if err := c.makeSites(ctx, o); err != nil {
		return err
	}
	if err := c.startNodes(ctx); err != nil {
		return err
	}
	if err := c.startMembers(ctx, timings); err != nil {
		return err
	}
	return c.awaitWhole(ctx)
}

func (c *cluster) close() error {
	c.stop()
	c.wrote.Wait()
	var errs []error
	for _, m := range c.members() {
		if m.client != nil {
			errs = append(errs, m.client.Close())
		}
	}
	return errors.Join(append(errs, c.lab.Close())...)
}

func (c *cluster) makeSites(ctx context.Context, o options) error {
	binary, err := filepath.Abs(o.meshd) // commands on hosts run in /
	if err != nil {
		return fmt.Errorf("find meshd: %w", err)
	}
	for _, name := range []string{"a", "b", "c"} {
		place, err := c.lab.Site(ctx, name, lab.SiteOptions{Underlay: lab.NAT})
		if err != nil {
			return err
		}
		if o.netem {
			if err := place.Impair(ctx, underlay); err != nil {
				return err
			}
		}
		gateway, err := place.Host(ctx, name+"-gateway")
		if err != nil {
			return err
		}
		server, err := place.Host(ctx, name+"-server")
		if err != nil {
			return err
		}
		c.sites = append(c.sites, &site{name, lab.NewNode(gateway, binary), &member{Node: lab.NewNode(server, binary)}})
	}
	return nil
}

func (c *cluster) startNodes(ctx context.Context) error {
	join := []string{c.sites[0].gateway.Public().String(), c.sites[1].gateway.Public().String()}
	secret, err := c.nodes()[0].NewSecret(ctx)
	if err != nil {
		return err
	}
	for _, s := range c.sites {
		lines := []string{"  location: " + s.name, "cluster:", "  mode: location"}
		if err := errors.Join(
			s.gateway.Configure(lab.Config(s.gateway.Name, join, append([]string{"  gateway: prefer"}, lines...)...), secret),
			s.server.Configure(lab.Config(s.server.Name, join, lines...), secret),
			s.gateway.Start(), s.server.Start(),
		); err != nil {
			return err
		}
	}
	return c.awaitMesh(ctx)
}

func (c *cluster) startMembers(ctx context.Context, timings mesh.EtcdTimings) error {
	addrs := map[string]netip.Addr{}
	for _, m := range c.members() {
		s, err := m.Status(ctx)
		if err != nil {
			return err
		}
		addrs[m.Name] = s.Node.Overlay[0]
	}
	writing, stop := context.WithCancel(context.WithoutCancel(ctx))
	c.stop = stop
	for _, m := range c.members() {
		text, err := settings(m.Name, addrs, timings)
		if err != nil {
			return err
		}
		if err := m.start(text); err != nil {
			return err
		}
		c.wrote.Go(func() { m.write(writing) })
	}
	return nil
}

func (c *cluster) nodes() []*lab.Node {
	var all []*lab.Node
	for _, s := range c.sites {
		all = append(all, s.gateway, s.server.Node)
	}
	return all
}

// without returns the other sites.
func (c *cluster) without(lost *site) []*site {
	return slices.DeleteFunc(slices.Clone(c.sites), func(s *site) bool { return s == lost })
}

// another returns the site after a site.
func (c *cluster) another(s *site) *site {
	return c.sites[(slices.Index(c.sites, s)+1)%len(c.sites)]
}

func (c *cluster) members() []*member {
	var all []*member
	for _, s := range c.sites {
		all = append(all, s.server)
	}
	return all
}

// awaitMesh waits until all nodes see each other, the preferred gateways are the gateways, and the
// paths between them are direct.
func (c *cluster) awaitMesh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, n := range c.nodes() {
		if _, err := n.Await(ctx, "ready, and sees all", lab.Sees(len(c.nodes())-1)); err != nil {
			return err
		}
	}
	for _, s := range c.sites {
		if err := c.awaitGateway(ctx, s.gateway); err != nil {
			return err
		}
	}
	for _, from := range c.sites {
		for _, to := range c.without(from) {
			if _, err := from.gateway.Await(ctx, "on a direct path to "+to.name, lab.OnPath(to.gateway, control.PathDirect)); err != nil {
				return err
			}
		}
	}
	return nil
}

// awaitGateway waits until all servers have a node as the gateway of its site.
func (c *cluster) awaitGateway(ctx context.Context, gateway *lab.Node) error {
	for _, m := range c.members() {
		if _, err := m.Await(ctx, "aware of gateway "+gateway.Name, func(s control.Status) bool {
			if s.Node.Name == gateway.Name {
				return s.Node.Role == control.RoleGateway
			}
			return lab.PeerOf(s, gateway.Name).Role == control.RoleGateway
		}); err != nil {
			return err
		}
	}
	return nil
}

// awaitWhole waits until nothing is left of any failure: the mesh is whole, all members have the same
// leader and connections to each other, and all can write.
func (c *cluster) awaitWhole(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := c.awaitMesh(ctx); err != nil {
		return err
	}
	for began := time.Now(); ; {
		err := c.connected(ctx)
		if err == nil {
			break
		}
		if wait.Sleep(ctx, lab.Pause(time.Second, began)) != nil {
			return err
		}
	}
	c.countWrites()
	_, err := c.awaitWrites(ctx, c.members())
	return err
}

// connected returns an error unless all members have the same leader and are connected.
func (c *cluster) connected(ctx context.Context) error {
	if _, _, err := c.leader(ctx); err != nil {
		return err
	}
	for _, m := range c.members() {
		peers, err := m.activePeers(ctx)
		if err != nil {
			return err
		}
		if want := len(c.sites) - 1; peers != want {
			return fmt.Errorf("etcd on %s is connected to %d members, want %d", m.Name, peers, want)
		}
	}
	return nil
}

// leader returns the site of etcd's leader and the term. It fails if the members don't agree.
func (c *cluster) leader(ctx context.Context) (*site, uint64, error) {
	var (
		at           *site
		leader, term uint64
	)
	for i, s := range c.sites {
		status, err := s.server.status(ctx)
		if err != nil {
			return nil, 0, err
		}
		if i == 0 {
			leader, term = status.Leader, status.RaftTerm
		}
		if status.Leader != leader || status.RaftTerm != term {
			return nil, 0, fmt.Errorf("%s has leader %x of term %d, another member %x of %d", s.server.Name, status.Leader, status.RaftTerm, leader, term)
		}
		if status.Header.MemberId == leader {
			at = s
		}
	}
	if at == nil {
		return nil, 0, errors.New("etcd has no leader")
	}
	return at, term, nil
}

// countWrites has only those writes count that begin from now on.
func (c *cluster) countWrites() {
	for _, m := range c.members() {
		m.countWrites()
	}
}

// awaitWrites waits until a write that began after countWrites has succeeded on each of these members,
// and returns when the last of them had.
func (c *cluster) awaitWrites(ctx context.Context, on []*member) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var last time.Time
	for _, m := range on {
		for m.firstWrite().IsZero() {
			if err := wait.Sleep(ctx, pollPeriod); err != nil {
				return last, fmt.Errorf("wait until %s can write: %w", m.Name, err)
			}
		}
		if wrote := m.firstWrite(); wrote.After(last) {
			last = wrote
		}
	}
	return last, nil
}

// report returns what is needed to find out what happened: the logs of all daemons and members.
func (c *cluster) report() string {
	var b strings.Builder
	for _, n := range c.nodes() {
		fmt.Fprintf(&b, "log of %s:\n%s\n", n.Name, n.Log())
	}
	for _, m := range c.members() {
		text, err := os.ReadFile(m.Path(logPath))
		fmt.Fprintf(&b, "log of etcd on %s: %v\n%s\n", m.Name, err, text)
	}
	return b.String()
}
