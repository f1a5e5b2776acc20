// SPDX-License-Identifier: Apache-2.0

// Command demo shows meshd at work on one machine. It makes cloud hosts out of
// namespaces, each with a private address behind a 1:1 NAT of its own, starts a
// meshd on every one of them, with one seed address to find each other, gives
// each a pod through the CNI configuration that meshd installed, and pings
// everything from everything. With a topology of locations there are six hosts:
// three share a LAN, two share another one, and one is alone. With the topology nat there
// are five: one in a cloud, three at homes behind routers of two kinds, and one in a
// network without UDP. With a client, a laptop behind another NAT reaches every pod, a
// Service and a name. It exits with 0 only if every ping was answered, and, with the
// topology nat, every path is of the kind that it should be. It leaves nothing behind,
// however it ends.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

func main() {
	lab.Main()
	os.Exit(run())
}

func run() int {
	count := flag.Int("nodes", 4, "how many hosts to make, with the topology full")
	topology := flag.String("topology", "full", "which hosts there are, and who has tunnels to whom: full, location or cross; or nat: full, behind routers of several kinds")
	binary := flag.String("meshd", "bin/meshd", "the meshd to run on them")
	client := flag.Bool("client", false, "add a laptop behind NAT")
	wireguardGo := flag.String("wireguard-go", "bin/wireguard-go", "what wg-quick runs on the laptop if the kernel has no WireGuard")
	flag.Parse()
	if *count < 2 || *count > maxNodes {
		fmt.Fprintf(os.Stderr, "demo: -nodes: got %d, want 2 to %d\n", *count, maxNodes)
		return 2
	}
	if !slices.Contains([]string{string(mesh.ModeFull), string(mesh.ModeLocation), string(mesh.ModeCross), topologyNAT}, *topology) {
		fmt.Fprintf(os.Stderr, "demo: -topology: got %q, want full, location, cross or nat\n", *topology)
		return 2
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer cancel()
	o := options{binary: *binary, topology: *topology, count: *count}
	if *client {
		o.wireguardGo = *wireguardGo
	}
	return exitCode(demo(ctx, o))
}

// topologyNAT is the topology that is not named after a mode.
const topologyNAT = "nat"

// options are the settings of a demo.
type options struct {
	binary      string
	topology    string // a mode, or topologyNAT
	count       int
	wireguardGo string // "" for no laptop
}

// exitCode prints the error of a demo, and returns its exit code.
func exitCode(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 1
	}
	return 0
}

// clouds are the names of the first hosts; further ones are numbered.
var clouds = []string{"aws", "gcp", "azure", "aliyun", "hetzner", "oracle", "linode", "ovh"}

// maxNodes is what the lab's address plan and one machine can carry.
const maxNodes = 50

func names(count int) []string {
	var all []string
	for i := range count {
		if i < len(clouds) {
			all = append(all, clouds[i])
		} else {
			all = append(all, fmt.Sprintf("cloud-%d", i+1))
		}
	}
	return all
}

// Limits are generous: they only distinguish slow from never.
const (
	settleLimit = 3 * time.Minute // for daemons to be ready and to see each other
	pingLimit   = 1 * time.Minute // for one ping to be answered
)

func demo(ctx context.Context, o options) (err error) {
	l, err := lab.New(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()

	nodes, err := hosts(ctx, l, o)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		where := ""
		switch {
		case o.topology == topologyNAT:
			where = ", " + routerOf(n.Name)
		case n.Location() != "":
			where = " in location " + n.Location()
		}
		fmt.Printf("host %-8s %s behind %s%s\n", n.Name, n.Address(), n.Public(), where)
	}
	stations, err := start(ctx, nodes)
	if err != nil {
		return withLogs(err, nodes...)
	}
	status, err := nodes[0].Meshd(ctx, "status")
	if err != nil {
		return withLogs(err, nodes[0])
	}
	fmt.Printf("\n%s# meshd status\n%s\n", nodes[0].Name, status)
	var more []string
	if o.topology == topologyNAT {
		paths, err := settlePaths(ctx, nodes)
		if err != nil {
			return withLogs(err, nodes...)
		}
		more = append(more, paths)
	}
	if o.wireguardGo != "" {
		client, err := tryClient(ctx, l, o.wireguardGo, stations)
		if err != nil {
			return withLogs(fmt.Errorf("failed, %s\n%w", client, err), nodes...)
		}
		more = append(more, client)
	}
	return pingAll(ctx, stations, strings.Join(more, ", "))
}

// hosts makes the hosts with their files.
func hosts(ctx context.Context, l *lab.Lab, o options) ([]*lab.Node, error) {
	switch o.topology {
	case topologyNAT:
		return natHosts(ctx, l, o.binary)
	case string(mesh.ModeFull):
		return l.Nodes(ctx, o.binary, lab.NAT, names(o.count)...)
	}
	six, err := l.Six(ctx, o.binary, "cluster:", "  mode: "+o.topology)
	if err != nil {
		return nil, err
	}
	return six.Nodes, nil
}

// station is a node with the addresses by which others ping it.
type station struct {
	*lab.Node
	overlay, internal netip.Addr
	pod               *lab.Pod
}

// start starts the daemons and makes a pod on every host that is ready.
func start(ctx context.Context, nodes []*lab.Node) ([]station, error) {
	for _, n := range nodes {
		if err := n.Start(); err != nil {
			return nil, err
		}
	}
	settle, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	stations := make([]station, len(nodes))
	g, settle := errgroup.WithContext(settle)
	for i, n := range nodes {
		g.Go(func() error {
			s, err := n.Await(settle, fmt.Sprintf("ready and sees %d peers", len(nodes)-1), lab.Sees(len(nodes)-1))
			if err != nil {
				return err
			}
			pod, err := n.Pod(settle, lab.Network, n.Name+"-pod")
			if err != nil {
				return err
			}
			stations[i] = station{Node: n, overlay: s.Node.Overlay[0], internal: n.Address(), pod: pod}
			return nil
		})
	}
	return stations, g.Wait()
}

// withLogs adds the last lines of the nodes' logs to an error.
func withLogs(err error, nodes ...*lab.Node) error {
	var b strings.Builder
	for _, n := range nodes {
		fmt.Fprintf(&b, "\n--- last of %s's log\n%s", n.Name, lastLines(n.Log(), 15))
	}
	return fmt.Errorf("%w%s", err, b.String())
}

func lastLines(text string, count int) string {
	lines := strings.SplitAfter(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-count):], "")
}
