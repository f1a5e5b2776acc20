// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Parse parses the output of `iptables -S` or `ip6tables -S` for a table. Lines that it
// doesn't understand are ignored, together with their effect; the programs print no such
// lines.
func Parse(b Backend, family, name, text string) Table {
	t := Table{Backend: b, Family: family, Name: name, Chains: map[string]Chain{}}
	for line := range strings.Lines(text) {
		words := Words(line)
		if len(words) < 2 {
			continue
		}
		name := words[1]
		chain := t.Chains[name]
		switch words[0] {
		case "-P":
			chain.Hook = strings.ToLower(name)
			chain.Drops = len(words) > 2 && words[2] == "DROP"
		case "-A":
			chain.Rules = append(chain.Rules, parseRule(words[2:]))
		case "-N":
		default:
			continue
		}
		t.Chains[name] = chain
	}
	// A target is the name of a chain, or else an action that does not decide about the
	// packet, such as LOG.
	for name, chain := range t.Chains {
		for i, r := range chain.Rules {
			if _, ok := t.Chains[r.Chain]; !ok && r.Chain != "" {
				t.Chains[name].Rules[i].Action, t.Chains[name].Rules[i].Chain = None, ""
			}
		}
	}
	return t
}

// parseRule parses the words of a rule. iptables always prints the matches first and the
// target last.
func parseRule(words []string) Rule {
	var r Rule
	not := false
	for len(words) > 0 {
		option := words[0]
		words = words[1:]
		if option == "!" {
			not = true
			continue
		}
		arg := ""
		if len(words) > 0 && !isOption(words[0]) {
			arg = words[0]
		}
		switch option {
		case "-j", "-g":
			r.Action, r.Chain = target(option, arg)
			if r.Action == Translate && len(words) > 2 {
				r.To = words[2] // the word after --to-destination or --to-ports
			}
			return r
		case "-m": // the name of the extension: not needed
		case "--comment":
			r.Comment = arg
		default:
			c := parseCondition(option, arg)
			c.Not = not
			r.Conditions = append(r.Conditions, c)
		}
		not = false
		for len(words) > 0 && !isOption(words[0]) {
			words = words[1:]
			if option == "--comment" {
				break // only one word: the text may look like an option
			}
		}
	}
	return r
}

// isOption reports whether a word starts a new match: an option or a negation.
func isOption(word string) bool { return strings.HasPrefix(word, "-") || word == "!" }

func target(option, name string) (Action, string) {
	switch name {
	case "ACCEPT":
		return Accept, ""
	case "DROP", "REJECT":
		return Drop, ""
	case "RETURN":
		return Return, ""
	case "DNAT", "REDIRECT":
		return Translate, ""
	}
	if option == "-g" {
		return Goto, name
	}
	return Jump, name
}

func parseCondition(option, arg string) Condition {
	switch option {
	case "-i":
		return Condition{Field: In, Values: []string{wildcard(arg)}}
	case "-o":
		return Condition{Field: Out, Values: []string{wildcard(arg)}}
	case "-p":
		return Condition{Field: Protocol, Values: []string{arg}}
	case "--dport", "--dports":
		return portsCondition(Port, arg)
	case "--sport", "--sports":
		return portsCondition(SourcePort, arg)
	case "-s":
		return prefixCondition(Source, arg)
	case "-d":
		return prefixCondition(Destination, arg)
	case "--src-range":
		return Condition{Field: Source, Values: []string{arg}}
	case "--dst-range":
		return Condition{Field: Destination, Values: []string{arg}}
	case "--mark":
		return markCondition(arg)
	case "--dst-type":
		return Condition{Field: Type, Values: strings.Split(strings.ToLower(arg), ",")}
	case "--ctstate", "--state":
		return Condition{Field: State, Values: strings.Split(strings.ToLower(arg), ",")}
	}
	return Condition{Field: Unknown}
}

// portsCondition parses a list of ports and of ranges such as 80:90.
func portsCondition(f Field, arg string) Condition {
	return Condition{Field: f, Values: strings.Split(strings.ReplaceAll(arg, ":", "-"), ",")}
}

// markCondition parses value/mask.
func markCondition(arg string) Condition {
	value, _, _ := strings.Cut(arg, "/")
	n, err := strconv.ParseUint(value, 0, 32)
	if err != nil {
		return Condition{Field: Unknown}
	}
	return Condition{Field: Mark, Values: []string{strconv.FormatUint(n, 10)}}
}

// wildcard replaces iptables' sign for any ending by nft's.
func wildcard(link string) string {
	if start, ok := strings.CutSuffix(link, "+"); ok {
		return start + "*"
	}
	return link
}

// prefixCondition returns a condition for an address with a prefix length. A netmask with
// gaps is not understood.
func prefixCondition(f Field, arg string) Condition {
	if _, err := netip.ParsePrefix(arg); err != nil {
		return Condition{Field: Unknown}
	}
	return Condition{Field: f, Values: []string{arg}}
}

// Words splits a line into words as a shell would. iptables puts words that contain
// blanks into double quotes, with backslashes before quotes inside.
func Words(line string) []string {
	var words []string
	var word []rune
	inside, quoted, escaped := false, false, false
	for _, r := range line {
		switch {
		case escaped:
			word, escaped = append(word, r), false
		case r == '\\' && quoted:
			escaped = true
		case r == '"':
			inside, quoted = true, !quoted
		case !quoted && strings.ContainsRune(" \t\r\n", r):
			if inside {
				words, word, inside = append(words, string(word)), nil, false
			}
		default:
			word, inside = append(word, r), true
		}
	}
	if inside {
		words = append(words, string(word))
	}
	return slices.Clip(words)
}
