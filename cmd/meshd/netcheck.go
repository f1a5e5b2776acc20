// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/meshd/meshd/internal/control"
)

func newNetcheck(p *paths) *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "netcheck",
		Short: "Show the NAT in front of this node, and whether UDP passes",
		Long: `Show what the networks between this node and the others let pass: whether UDP does, and,
for each address family, the address at which the other nodes see this one, the kind of
NAT in between, and whether others can reach it before it has sent them anything. It also
shows whether the router passes back packets to its own public address (hairpin), the
ports that it maps to this host, paths that carry less than the tunnels' MTU, and the
relays, the nearest first. The last lines say what that means for this host.

The daemon and the other nodes have measured all this before; only hairpin is tested now.
No host outside the mesh is contacted.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := p.client().Network(cmd.Context())
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), n, func(w io.Writer) error { return printNetwork(w, n) })
		},
	}
	out.register(cmd)
	return cmd
}

// printNetwork writes what is known of the networks for a person, and what it means.
func printNetwork(w io.Writer, n control.Network) error {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "UDP:\t%s\n", udpWords(n.UDP))
	for _, f := range n.Families {
		fmt.Fprintf(t, "%s:\t%s\n", f.Name, familyWords(f))
	}
	fmt.Fprintf(t, "Hairpin:\t%s\n", hairpinWords(n.Hairpin))
	fmt.Fprintf(t, "Mapped:\t%s\n", orDash(mappedWords(n.PortMappings)))
	fmt.Fprintf(t, "MTU:\t%s\n", mtuWords(n))
	fmt.Fprintf(t, "Relays:\t%s\n", orDash(relayWords(n.Relays)))
	t.Flush() // writing to a strings.Builder never fails
	fmt.Fprintf(&b, "\n%s\n", networkMeaning(n))
	_, err := io.WriteString(w, b.String())
	return err
}

func udpWords(a control.Answer) string {
	switch a {
	case control.Yes:
		return "passes"
	case control.No:
		return "is blocked"
	default:
		return "not known: no other node has answered yet"
	}
}

// familyWords says where others see this node, through what, and whether they get in.
func familyWords(f control.Family) string {
	var seen []string
	for _, a := range f.Seen {
		seen = append(seen, a.String())
	}
	at := strings.Join(seen, ", ")
	switch f.NAT {
	case control.NATUnknown:
		return "not known: no node beyond the private network has said where it sees this one"
	case control.NATNone:
		at += ", no NAT"
	case control.NATOneNode:
		at += ", behind NAT; a second node is needed to see whether it changes ports"
	case control.NATSamePort:
		at += ", behind NAT with the same port for all"
	case control.NATPorts:
		at += ", behind NAT that changes ports (symmetric)"
	}
	switch f.Reached {
	case control.Yes:
		return at + "; open: others get in without having been spoken to"
	case control.No:
		return at + "; only answers get in"
	default:
		return at + "; no other node has tried to get in"
	}
}

func hairpinWords(a control.Answer) string {
	if a == control.Unknown {
		return "not tried: there is no NAT with the same port for all"
	}
	return string(a)
}

func mappedWords(all []control.PortMapping) string {
	var words []string
	for _, m := range all {
		word := fmt.Sprintf("%v to port %d, by %s of the router %v", m.External, m.Port, m.Protocol, m.Router)
		if !m.Public {
			word += ", which is behind NAT itself"
		}
		words = append(words, word)
	}
	return strings.Join(words, "; ")
}

func mtuWords(n control.Network) string {
	words := fmt.Sprint(n.MTU)
	for _, p := range n.Narrow {
		words += fmt.Sprintf("; the path to %s carries %d", p.Node, p.MTU)
	}
	return words
}

func relayWords(all []control.NearbyRelay) string {
	var words []string
	for _, r := range all {
		words = append(words, strings.TrimSpace(r.Name+" "+roundTrip(r.RTT)))
	}
	return strings.Join(words, ", ")
}

// networkMeaning says in two sentences what follows for this host.
func networkMeaning(n control.Network) string {
	is := func(want func(control.Family) bool) bool { return slices.ContainsFunc(n.Families, want) }
	var open []string
	for _, f := range n.Families {
		if f.Reached == control.Yes {
			open = append(open, f.Name)
		}
	}
	sight := is(func(f control.Family) bool { return f.NAT != control.NATUnknown })
	ports := is(func(f control.Family) bool { return f.NAT == control.NATPorts })
	six := is(func(f control.Family) bool { return f.Name == "IPv6" && f.NAT == control.NATNone })
	others := "There is no relay through which it could reach the others"
	if len(n.Relays) > 0 {
		others = "It reaches the others through a relay, such as " + n.Relays[0].Name
	}
	switch {
	case n.UDP == control.No:
		return fmt.Sprintf("The network drops UDP, so packets go over TCP, which is slower. Let UDP from port %d of this host out to any address and port, and the answers in.", n.Port)
	case n.Alive == 0:
		return "No other node answers, so nothing is known of the networks in between. Ask again when meshd status shows one that is alive."
	case len(open) > 0:
		by := strings.Join(open, " or ")
		return fmt.Sprintf("Others get in unasked, so this node meets directly every other one that has %s. There is nothing to open, and nothing to forward.", by)
	case !sight:
		return "No other node has said yet where it sees this one, so it is not known whom it meets directly. Ask again in a minute; meshd status shows the paths that are in use."
	case ports && six:
		return fmt.Sprintf("This node meets directly the nodes that are open, and those that have IPv6 as well. %s, unless you have its router map or forward UDP port %d.", others, n.Port)
	case ports:
		return fmt.Sprintf("This node meets directly only the nodes that are open, because its router gives it another port for each of them. %s, unless you have the router map or forward UDP port %d, or have IPv6 at both ends.", others, n.Port)
	default:
		return fmt.Sprintf("This node meets directly all nodes but those behind a NAT that changes ports. %s, unless you open or forward UDP port %d to this host.", others, n.Port)
	}
}
