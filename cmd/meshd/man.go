// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// newMan returns the hidden command that writes the manual page when the Debian package is
// built. It is generated, so it always agrees with --help.
func newMan() *cobra.Command {
	var date string
	cmd := &cobra.Command{
		Use:    "man",
		Short:  "Write the manual page meshd(8)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := io.WriteString(cmd.OutOrStdout(), manual(cmd.Root(), date))
			return err
		},
	}
	cmd.Flags().StringVar(&date, "date", "", "`date` at the foot of the page")
	return cmd
}

// manual returns the manual page meshd(8), in the language of man(7).
func manual(root *cobra.Command, date string) string {
	var b strings.Builder
	fmt.Fprintf(&b, ".TH MESHD 8 %q %q \"System administration\"\n", date, "meshd "+version)
	fmt.Fprintf(&b, ".SH NAME\nmeshd \\- %s\n", roff(root.Short))
	b.WriteString(".SH SYNOPSIS\n.B meshd\n.I command\n[flags]\n")
	fmt.Fprintf(&b, ".SH DESCRIPTION\n%s", paragraphs(root.Long))
	b.WriteString(".SH COMMANDS\n")
	manualCommands(&b, root)
	b.WriteString(".SH FLAGS OF EVERY COMMAND\n")
	manualFlags(&b, root.PersistentFlags())
	b.WriteString(manualEnd)
	return b.String()
}

// manualCommands describes all subcommands that have no subcommands themselves.
func manualCommands(b *strings.Builder, parent *cobra.Command) {
	for _, cmd := range parent.Commands() {
		if !cmd.IsAvailableCommand() || cmd.Name() == "completion" || cmd.Name() == "help" {
			continue
		}
		if cmd.HasAvailableSubCommands() {
			manualCommands(b, cmd)
			continue
		}
		fmt.Fprintf(b, ".SS %s\n", roff(strings.TrimSuffix(cmd.UseLine(), " [flags]")))
		text := cmd.Long
		if text == "" {
			text = cmd.Short + "."
		}
		b.WriteString(paragraphs(text))
		manualFlags(b, cmd.LocalNonPersistentFlags())
	}
}

func manualFlags(b *strings.Builder, flags *pflag.FlagSet) {
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		b.WriteString(".TP\n.B ")
		if f.Shorthand != "" {
			fmt.Fprintf(b, "\\-%s, ", f.Shorthand)
		}
		fmt.Fprintf(b, "\\-\\-%s", roff(f.Name))
		switch {
		case value != "" && f.NoOptDefVal != "": // it may be given without a value
			fmt.Fprintf(b, "[=\\fI%s\\fP]", roff(value))
		case value != "":
			fmt.Fprintf(b, " \\fI%s\\fR", roff(value))
		}
		fmt.Fprintf(b, "\n%s", roff(usage))
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "[]" {
			fmt.Fprintf(b, " (default %s)", roff(f.DefValue))
		}
		b.WriteString("\n")
	})
}

// paragraphs formats text whose paragraphs are separated by empty lines. Indented lines
// are not filled.
func paragraphs(text string) string {
	var b strings.Builder
	for line := range strings.Lines(strings.TrimSpace(text) + "\n") {
		switch line = strings.TrimSuffix(line, "\n"); {
		case line == "":
			b.WriteString(".PP\n")
		case strings.HasPrefix(line, " "):
			fmt.Fprintf(&b, ".br\n\\&%s\n", roff(line))
		default:
			fmt.Fprintf(&b, "%s\n", roff(line))
		}
	}
	return b.String()
}

// roff escapes what has a meaning in roff(7): backslashes, hyphens, and a dot or quote at
// the start of a line.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}

// manualEnd has the sections that are not in --help.
const manualEnd = `.SH SIGNALS
Of
.BR "meshd run" :
.TP
.B SIGTERM, SIGINT
Stop. Tunnels, routes and rules stay as they are.
.TP
.B SIGHUP
Reload the configuration and the secret, and check the whole host.
.SH FILES
.TP
.I /etc/meshd.yaml
The configuration, see
.BR meshd.yaml (5).
.TP
.I /etc/meshd/secret
The secret that all nodes of a mesh share.
.TP
.I /var/lib/meshd
The persistent state: the node's identity, and the addresses that it has claimed.
.TP
.I /run/meshd/meshd.sock
The control socket.
.TP
.I /run/meshd/path.json
The key with which this node's probes of paths are sealed. It lasts until the next boot.
.TP
.I /etc/cni/net.d/10\-meshd.conflist
The CNI configuration of the pods, written by meshd.
.SH EXAMPLES
The first node of a mesh:
.PP
.nf
meshd init
.fi
.PP
Each further node needs the token that a node prints:
.PP
.nf
meshd token             # on a node
meshd join              # on the new one
.fi
.SH SEE ALSO
.BR meshd.yaml (5),
.BR wg (8),
.BR ip\-route (8),
.BR nft (8),
.BR journalctl (1)
`
