// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"

	"github.com/spf13/cobra"

	"github.com/meshd/meshd/internal/control"
)

func newPing(p *paths) *cobra.Command {
	var (
		out   output
		count int
	)
	cmd := &cobra.Command{
		Use:   "ping NODE",
		Short: "Ping a node and every node on the way to it, and have it ping back",
		Long: `Send echo requests through the mesh to another node and to every node on the way there,
and ask that node how it sees this one, which it finds out by a ping of its own. The
question goes by gossip, so it may arrive where the tunnel doesn't work.

The exit code is 1 if an echo request stays without an answer.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeNames(p, nodeNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if count < 1 || count > control.MaxPings {
				return usageError{fmt.Errorf("--count %d: want 1 to %d", count, control.MaxPings)}
			}
			s, ping, err := pingNode(cmd.Context(), p.client(), args[0], count)
			if err != nil {
				return err
			}
			if err := out.print(cmd.OutOrStdout(), ping, func(w io.Writer) error { return printPing(w, s, ping) }); err != nil {
				return err
			}
			if ping.Hops[len(ping.Hops)-1].Answered < ping.Sent {
				return errSaid
			}
			return nil
		},
	}
	cmd.Flags().IntVarP(&count, "count", "c", 3, "`number` of echo requests to each node")
	out.register(cmd)
	return cmd
}

// pingNode pings a node, and returns the status after that.
func pingNode(ctx context.Context, c *control.Client, name string, count int) (control.Status, control.Ping, error) {
	s, err := c.Status(ctx)
	if err != nil {
		return s, control.Ping{}, err
	}
	if _, ok := peerNamed(s, name); !ok {
		if name == s.Node.Name {
			return s, control.Ping{}, fmt.Errorf("%w: %s is this node; name another one", control.ErrRefused, name)
		}
		return s, control.Ping{}, unknownName(name, "other node", nodeNames(s))
	}
	ping, err := c.Ping(ctx, name, count)
	if err != nil {
		return s, ping, err
	}
	s, err = c.Status(ctx)
	return s, ping, err
}

func printPing(w io.Writer, s control.Status, p control.Ping) error {
	rows := [][]cell{cells("NODE", "ANSWERS", "ROUND TRIP", "ROUTE", "PATH")}
	for _, h := range p.Hops {
		peer, _ := peerNamed(s, h.Name)
		way := "-"
		if kind := peer.Path.Works(); kind != "" && len(peer.Route.Via) == 0 {
			way = string(kind)
			if kind != control.PathNone {
				way = pathWords(kind, peer.Path.Addr.String(), peer.Path.Relay)
			}
		}
		answers := cells(fmt.Sprintf("%d of %d", h.Answered, p.Sent))[0]
		rows = append(rows, []cell{{text: h.Name}, answers, {text: orDash(roundTrip(h.RTT))}, {text: peer.Route.String()}, {text: way}})
	}
	_, err := fmt.Fprintf(w, "%s\n%s\n", layOut(rows, 0, false), ended(backWords(p)))
	return err
}

func newWhy(p *paths) *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "why NODE|ADDRESS",
		Short: "Explain why a node, or what has an address, can't be reached",
		Long: `Explain in one sentence whether this node and another one reach each other, and if not,
why, and what to do. It pings the node and every node on the way, reads the status, and
asks the node how it sees this one. For an address of a pod, or of something behind a
node, it explains the way to that node.

The exit code is 1 if something is wrong.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeNames(p, nodeNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := why(cmd.Context(), p.client(), args[0])
			if err != nil {
				return err
			}
			if err := out.print(cmd.OutOrStdout(), f, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s\n  %s\n", f.Text, f.Advice)
				return err
			}); err != nil || f.OK {
				return err
			}
			return errSaid
		},
	}
	out.register(cmd)
	return cmd
}

// whyPings is enough to tell loss from silence.
const whyPings = 3

// why explains the way to a node or an address.
func why(ctx context.Context, c *control.Client, what string) (finding, error) {
	name, about := what, ""
	if a, err := netip.ParseAddr(what); err == nil {
		s, err := c.Status(ctx)
		if err != nil {
			return finding{}, err
		}
		owner := s.WhoIs(a)
		ofNode := slices.Contains([]control.OwnerKind{control.OwnerNode, control.OwnerPod, control.OwnerNetwork}, owner.Kind)
		if !ofNode || owner.Name == s.Node.Name {
			return explainOwner(s, owner), nil
		}
		name, about = owner.Name, owner.Text+" "
	}
	s, ping, err := pingNode(ctx, c, name, whyPings)
	if err != nil {
		return finding{}, err
	}
	f := explainRoute(s, ping)
	f.Text = about + f.Text
	return f, nil
}

// explainOwner explains an address to which no other node of the mesh is on the way.
func explainOwner(s control.Status, o control.Owner) finding {
	f := finding{Node: o.Name, Text: o.Text}
	switch o.Kind {
	case control.OwnerService:
		f.OK, f.Advice = true, "k3s answers for Services on each node: see kubectl get endpoints -A for the pods behind it, then sudo meshd why with the address of one"
	case control.OwnerClient, control.OwnerRouter, control.OwnerCluster:
		f.OK, f.Advice = true, "see sudo meshd client list for the last handshake, and the client's own log"
	case control.OwnerUnused:
		f.Advice = "see meshd status for the nodes and their addresses"
	case control.OwnerOutside:
		f.Advice = "packets to it leave this host as they would without meshd: see ip route get " + o.Address.String()
	default:
		f.OK, f.Advice = true, fmt.Sprintf("it is on this node, %s: meshd is not on the way", s.Node.Name)
	}
	return f
}
