// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// newMan is for the package's build: the manual page can't say anything else
// than --help does.
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
	cmd.Flags().StringVar(&date, "date", "", "`day` at the foot of the page")
	return cmd
}

// manual is meshd(8) in the language of man(7).
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

// manualCommands describes the commands below one that do something themselves.
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
		if value != "" {
			fmt.Fprintf(b, " \\fI%s\\fR", roff(value))
		}
		fmt.Fprintf(b, "\n%s", roff(usage))
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "[]" {
			fmt.Fprintf(b, " (default %s)", roff(f.DefValue))
		}
		b.WriteString("\n")
	})
}

// paragraphs sets text with empty lines between its paragraphs. Lines that are
// indented stay as they are.
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

// roff escapes what roff(7) would take for its own: backslashes, hyphens that are
// to be copied as such, and a dot or quote at the start of a line.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}

// manualEnd is what --help doesn't say.
const manualEnd = `.SH SIGNALS
Of
.BR "meshd run" :
.TP
.B SIGTERM, SIGINT
End. Tunnels, routes and rules stay as they are.
.TP
.B SIGHUP
Read the configuration and the secret again, and look at everything anew.
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
What the node must not forget: who it is, and which addresses it has claimed.
.TP
.I /run/meshd/meshd.sock
The control socket.
.TP
.I /etc/cni/net.d/10\-meshd.conflist
The pods' network, written by meshd.
.SH EXAMPLES
The first node of a mesh:
.PP
.nf
meshd secret new \-\-out /etc/meshd/secret
systemctl enable \-\-now meshd
meshd status
.fi
.PP
Each further node gets a copy of the secret and, in
.IR /etc/meshd.yaml ,
.B join
with the address of a node that is there already.
.SH SEE ALSO
.BR meshd.yaml (5),
.BR wg (8),
.BR ip\-route (8),
.BR nft (8),
.BR journalctl (1)
`
