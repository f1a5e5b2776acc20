// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/meshd/meshd/internal/control"
)

// watchEvery is how often --watch shows the status anew.
const watchEvery = 2 * time.Second

func newStatus(p *paths) *cobra.Command {
	var (
		out          = output{formats: []string{"text", "wide", "json"}}
		probe, check bool
		await, watch bool
		timeout      time.Duration
	)
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show this node, the other nodes, and problems",
		Long: `Show this node, the other nodes, and problems with advice, in 80 columns. -o wide shows
everything, including what gossip has dropped and why; -o json is for programs.

ALIVE is yes, or how long ago the node was last alive. PATH is how packets get to it: lan,
direct, relayed or tcp, and through which nodes. RTT is the round-trip time, and what was
measured: the tunnel's path, pings along the whole route, or gossip. LOSS is the share of
the path's last 32 probes that were lost. PROBLEM has the kinds of the node's problems,
which are listed below, and "silent" or "losing" if pings to it are not answered. Without --probe only the routes that a
failover depends on are pinged; with it, every node gets one ping and has a second to
answer.

With --wait, it waits until pods may start on this host: the overlay address is on
the device, and the CNI configuration is in place. meshd-online.service does this
for k3s. The exit code is 1 if that takes longer than --timeout, and 3 if no daemon
answers for 30 seconds.

With --check the exit code is 1 unless pods may start here, there are no problems, and the
living nodes that are pinged answer.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ask := p.client().Status
			if probe {
				ask = p.client().Probe
			}
			w := cmd.OutOrStdout()
			v := view{wide: out.is("wide"), colors: hasColors(w)}
			show := func(s control.Status) error {
				return out.print(w, s, func(w io.Writer) error { return v.print(w, s, time.Now()) })
			}
			if watch {
				return watchStatus(cmd.Context(), w, ask, show)
			}
			if await {
				s, err := awaitReady(cmd.Context(), p.client(), timeout)
				if errors.Is(err, control.ErrNotRunning) {
					return err
				}
				return errors.Join(err, show(s))
			}
			s, err := ask(cmd.Context())
			if err != nil {
				return err
			}
			if err := show(s); err != nil || !check {
				return err
			}
			return wellness(s)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&probe, "probe", false, "ping every node now")
	flags.BoolVar(&await, "wait", false, "wait until pods may start on this host")
	flags.DurationVar(&timeout, "timeout", 0, "how long --wait waits, such as 5m; 0 is for ever")
	flags.BoolVarP(&watch, "watch", "w", false, "refresh every two seconds, until ctrl-C")
	flags.BoolVar(&check, "check", false, "exit with 1 if pods can't start here, there is a problem, or a living node does not answer pings")
	cmd.MarkFlagsMutuallyExclusive("probe", "wait")
	cmd.MarkFlagsMutuallyExclusive("watch", "wait", "check")
	out.register(cmd)
	return cmd
}

// awaitReady waits until pods may start, no longer than timeout unless that is 0.
func awaitReady(ctx context.Context, c *control.Client, timeout time.Duration) (control.Status, error) {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	s, err := c.AwaitReady(ctx)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil { // not the limit of one request
		err = fmt.Errorf("pods may not start on this host after %v: the status and journalctl -u meshd say why", timeout)
	}
	return s, err
}

// wellness returns an error unless pods may start on this host, there are no problems, and the living nodes
// answer pings where these are sent.
func wellness(s control.Status) error {
	switch {
	case s.Reconcile.Error != "":
		return errors.New("the last reconcile failed")
	case !s.Node.Ready:
		return errors.New("pods may not start on this host yet")
	case slices.ContainsFunc(s.Peers, func(p control.Peer) bool { return p.Alive && p.Route.Health == control.RouteSilent }):
		return errors.New("a node that is alive does not answer pings")
	case len(s.Problems) == 1:
		return errors.New("there is a problem")
	case len(s.Problems) > 1:
		return fmt.Errorf("there are %d problems", len(s.Problems))
	}
	return nil
}

// watchStatus shows the status again and again, until ctx ends. On a terminal each takes the place of
// the one before.
func watchStatus(ctx context.Context, w io.Writer, ask func(context.Context) (control.Status, error), show func(control.Status) error) error {
	clear := ""
	if isTerminal(w) {
		clear = "\x1b[H\x1b[2J" // to the top, and erase the screen
	}
	for {
		s, err := ask(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if _, err := io.WriteString(w, clear); err != nil {
			return err
		}
		if err != nil {
			_, err = fmt.Fprintln(w, "meshd:", err) // it may be restarting
		} else {
			err = show(s)
		}
		if err != nil {
			return err
		}
		select {
		case <-time.After(watchEvery):
		case <-ctx.Done():
			return nil
		}
	}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// hasEscapes reports whether w is a terminal that understands escape sequences.
func hasEscapes(w io.Writer) bool { return isTerminal(w) && os.Getenv("TERM") != "dumb" }

// hasColors reports whether to write colors: to a terminal, unless NO_COLOR is set (no-color.org).
func hasColors(w io.Writer) bool { return hasEscapes(w) && os.Getenv("NO_COLOR") == "" }

// columns is how wide a status for a person is, unless it is asked for everything.
const columns = 80

// view is how a status is written for a person.
type view struct {
	wide   bool // everything, however wide that is
	colors bool
}

func (v view) width() int {
	if v.wide {
		return 0
	}
	return columns
}

// print writes a status: this node, the other nodes, the clients, the clusters that are joined to this one,
// and problems with advice.
func (v view) print(w io.Writer, s control.Status, now time.Time) error {
	var b strings.Builder
	b.WriteString(v.node(s, now))
	if s.Node.Alone {
		at := "ADDRESS"
		if len(s.Node.JoinAt) > 0 {
			at = yamlList(s.Node.JoinAt)
		}
		fmt.Fprintf(&b, "\nThis node is alone. Others join it with the same secret, and in their\nconfiguration:\n  join: [%s]\n", at)
	}
	if len(s.Peers) > 0 {
		b.WriteString("\n")
		if v.wide {
			b.WriteString(v.table(widePeers(s.Peers, now)))
		} else {
			b.WriteString(v.table(peers(s, now)))
		}
	}
	if len(s.Clients) > 0 {
		b.WriteString("\n" + v.clients(s.Clients, now))
	}
	if len(s.Clusters) > 0 {
		b.WriteString("\n" + v.table(clusters(s.Clusters)))
	}
	if s.Reconcile.Error != "" {
		b.WriteString("\nThe last reconcile failed:\n")
		for line := range strings.Lines(s.Reconcile.Error) {
			b.WriteString(wrap("  ", line, v.width()))
		}
	}
	v.problems(&b, "Problems", s.Problems, red)
	v.problems(&b, "Notes", s.Notes, plain)
	if v.wide && len(s.Counters) > 0 {
		b.WriteString("\nDropped by gossip since the start:\n")
		b.WriteString(v.table(counters(s.Counters)))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (v view) table(rows [][]cell) string { return layOut(rows, v.width(), v.colors) }

// field is a line of what is said of this node.
type field struct{ label, text string }

// node writes what there is to say of this node.
func (v view) node(s control.Status, now time.Time) string {
	n := s.Node
	fields := []field{{"Node", n.Name + ", " + state(s)}}
	if s.Version != "" {
		fields = append(fields, field{"meshd", s.Version + ", up " + short(now.Sub(s.Started))})
	}
	if c := s.Cluster; c.Name != "" {
		fields = append(fields, field{"Cluster", fmt.Sprintf("%s, mode %s, generation %d", c.Name, c.Mode, c.Generation)})
	}
	fields = append(fields, field{"Fingerprint", n.ID.String()})
	if n.Location != "" {
		fields = append(fields, field{"Location", n.Location + role(n.Role)})
	}
	fields = append(fields, field{"Overlay", join(n.Overlay)}, field{"Pods", join(n.PodCIDRs)}, field{"Endpoint", join(n.Endpoints) + endpointNotes(n)})
	for _, net := range n.Networks {
		fields = append(fields, field{"Networks", fmt.Sprintf("%v, reached through %s", net.Network, net.Through)})
	}
	if len(n.Relays) > 0 {
		fields = append(fields, field{"Reached via", join(n.Relays) + ", by sealed packets"})
	}
	if v.wide {
		fields = append(fields, wideFields(s)...)
	}
	labels := 0
	for _, f := range fields {
		labels = max(labels, len(f.label))
	}
	var b strings.Builder
	last := ""
	for _, f := range fields {
		label := f.label + ":"
		if f.label == last {
			label = ""
		}
		last = f.label
		b.WriteString(wrap(fmt.Sprintf("%-*s", labels+len(gap)+1, label), f.text, v.width()))
	}
	return b.String()
}

// wideFields is what is said of this node only if everything is.
func wideFields(s control.Status) (fields []field) {
	for _, m := range s.Node.PortMappings {
		note := ""
		if !m.Public {
			note = ", which is behind NAT itself"
		}
		fields = append(fields, field{"Mapped", fmt.Sprintf("%v to port %d, by %s of the router %v%s", m.External, m.Port, m.Protocol, m.Router, note)})
	}
	for _, i := range s.Node.InternalIPs {
		fields = append(fields, field{"Internal IP", i.String()})
	}
	for _, i := range s.Node.OtherPrivate {
		fields = append(fields, field{"Not used", i.String()})
	}
	fields = append(fields, field{"Secrets", join(s.Node.Secrets)})
	device := "-"
	if d := s.Device; d.Name != "" {
		device = fmt.Sprintf("%s, %s WireGuard, port %d, MTU %d", d.Name, d.Implementation, d.ListenPort, d.MTU)
	}
	fields = append(fields, field{"Device", device})
	if r := s.Relay; r != nil {
		fields = append(fields, field{"Relay", fmt.Sprintf("for %d nodes, %s forwarded", r.Nodes, size(int64(r.Bytes)))})
	}
	return fields
}

// state words whether this node is in the mesh.
func state(s control.Status) string {
	switch {
	case s.Node.Slot < 0 && !slices.ContainsFunc(s.Peers, func(p control.Peer) bool { return p.Alive }):
		return "looking for the mesh"
	case !s.Node.Ready:
		return "not ready yet"
	}
	return "ready"
}

// endpointNotes says what is special of this node's endpoints.
func endpointNotes(n control.Node) string {
	var notes []string
	if n.NAT {
		notes = append(notes, "behind NAT")
	}
	if len(n.Endpoints) > 0 && !n.Open {
		notes = append(notes, "not reached by other nodes so far")
	}
	if len(notes) == 0 {
		return ""
	}
	return " (" + strings.Join(notes, ", ") + ")"
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
