package role

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/holdfast-vm/holdfast/internal/drill/inside"
)

const (
	powershellPath = `C:\Windows\System32\WindowsPowerShell\v1.0\powershell.exe`
	maxCmdLine     = 8000 // bytes of a command line of cmd.exe's, which takes 8,191 characters in all
	base64Line     = 4096 // bytes of a line of standard input
)

// prelude makes what PowerShell writes UTF-8, and keeps its progress bars out of it.
const prelude = "$ProgressPreference = 'SilentlyContinue'\ntry { [Console]::OutputEncoding = [Text.Encoding]::UTF8 } " +
	"catch { }\n"

// powershell runs a script of PowerShell 2 or later. The guest agent joins arguments to one command
// line, which each program takes apart by rules of its own, and escapes quotes in a way that
// cmd.exe and PowerShell do not understand: base64 has nothing to escape.
func powershell(script string) inside.Command {
	return inside.Command{Path: powershellPath, Shown: script,
		Args: []string{"-NoProfile", "-NonInteractive", "-ExecutionPolicy", "Bypass",
			"-InputFormat", "Text", "-OutputFormat", "Text", "-EncodedCommand", encode(prelude + script)}}
}

// encode is base64 of UTF-16, as -EncodedCommand wants it.
func encode(script string) string {
	var b []byte
	for _, u := range utf16.Encode([]rune(script)) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return base64.StdEncoding.EncodeToString(b)
}

// quotePS writes s as one word of PowerShell, which takes typographic quotes for its own.
func quotePS(s string) string {
	return "'" + strings.NewReplacer("'", "''", "‘", "‘‘", "’", "’’", "‚", "‚‚", "‛", "‛‛").Replace(s) + "'"
}

// cmdLine runs a line as if it were typed at cmd.exe's prompt: with /s it takes off the outermost
// quotes and leaves the rest alone.
func cmdLine(line string) inside.Command {
	c := powershell("$line = " + quotePS(line) + `
$start = New-Object Diagnostics.ProcessStartInfo -ArgumentList $env:ComSpec, ('/d /s /c "' + $line + '"')
$start.UseShellExecute = $false
$process = [Diagnostics.Process]::Start($start)
$process.WaitForExit()
exit $process.ExitCode`)
	c.Shown = line
	return c
}

// windowsScript copies standard input, which is base64 since PowerShell reads it as text, to a file
// and runs that.
func windowsScript(name string, text []byte) inside.Command {
	ext := strings.ToLower(filepath.Ext(name))
	if ext != ".cmd" && ext != ".bat" {
		ext = ".ps1"
		if mark := []byte("\ufeff"); utf8.Valid(text) && !bytes.HasPrefix(text, mark) {
			text = append(mark, text...) // without it PowerShell takes the file for one in the guest's old code page
		}
	}
	c := powershell(`$text = [Convert]::FromBase64String((@($input) -join ''))
$file = Join-Path ([IO.Path]::GetTempPath()) ('hf-drill-' + [Guid]::NewGuid() + '` + ext + `')
$status = 1
try {
	[IO.File]::WriteAllBytes($file, $text)
	$global:LASTEXITCODE = 0
	& $file
	$status = $LASTEXITCODE
} finally {
	Remove-Item -LiteralPath $file -Force -ErrorAction SilentlyContinue
}
exit $status`)
	c.Shown, c.Input = "script "+name, lines64(text)
	return c
}

// lines64 is base64 in lines that every reader of lines takes.
func lines64(text []byte) []byte {
	all := base64.StdEncoding.AppendEncode(nil, text)
	var out []byte
	for len(all) > 0 {
		n := min(len(all), base64Line)
		out = append(append(out, all[:n]...), '\n')
		all = all[n:]
	}
	return out
}

// windowsVolumes asks for the bit that makes Windows run chkdsk at the next start, the bit that
// "fsutil dirty query" shows, but in no language; for what Windows thinks of its volumes; and for
// damage that NTFS has met since the start.
const windowsVolumes = `$ErrorActionPreference = 'Stop'
$status = 0
foreach ($v in @(Get-WmiObject Win32_Volume -Filter 'DriveType=3')) {
	if ($v.DirtyBitSet) { Write-Output "volume $($v.Name) is marked dirty: chkdsk has to repair it"; $status = 1 }
}
if (Get-Command Get-Volume -ErrorAction SilentlyContinue) {
	foreach ($v in @(Get-Volume | Where-Object { $_.DriveType -eq 'Fixed' -and $_.FileSystem -and $_.HealthStatus -ne 'Healthy' })) {
		Write-Output "volume $($v.DriveLetter) $($v.FileSystemLabel) is not healthy: $($v.HealthStatus)"; $status = 1
	}
}
$boot = [Management.ManagementDateTimeConverter]::ToDateTime((Get-WmiObject Win32_OperatingSystem).LastBootUpTime)
$met = @(Get-WinEvent -FilterHashtable @{LogName='System'; Id=55; StartTime=$boot} -ErrorAction SilentlyContinue | Where-Object { $_.ProviderName -match 'ntfs' })
foreach ($e in $met) { Write-Output $e.Message; $status = 3 }
exit $status`

// failedServices are those that Windows starts by itself and that have ended with an error; 1077 is
// one that nobody has started yet.
const failedServices = `$ErrorActionPreference = 'Stop'
$status = 0
foreach ($s in @(Get-WmiObject Win32_Service -Filter "StartMode='Auto' AND State<>'Running'")) {
	if ($s.State -eq 'Start Pending') { Write-Output "service $($s.Name) is starting"; $status = 1 }
	elseif ($s.ExitCode -ne 0 -and $s.ExitCode -ne 1077) { Write-Output "service $($s.Name) has ended with error $($s.ExitCode)"; $status = 1 }
}
exit $status`

func oneService(name string) string {
	return "$name = " + quotePS(name) + `
$service = @(Get-Service | Where-Object { $_.Name -eq $name -or $_.DisplayName -eq $name })
if ($service.Count -eq 0) { Write-Output 'there is no such service'; exit 1 }
if ($service[0].Status -eq 'Running') { exit 0 }
Write-Output "it is $($service[0].Status)"
exit 1`
}

func listens(port uint64) string {
	return fmt.Sprintf(`$all = [Net.NetworkInformation.IPGlobalProperties]::GetIPGlobalProperties().GetActiveTcpListeners()
if (@($all | Where-Object { $_.Port -eq %d }).Count -gt 0) { exit 0 }
Write-Output 'nothing listens on TCP port %d'
exit 1`, port, port)
}

// postgresReady asks whether the server takes connections. To read its tables takes a password:
// there is no user of the system's that it trusts.
func postgresReady(port string) string {
	return `$tool = @(Get-ChildItem -Path "$env:ProgramFiles\PostgreSQL\*\bin\pg_isready.exe" -ErrorAction SilentlyContinue)
if ($tool.Count -eq 0) { Write-Output 'there is no pg_isready in Program Files'; exit 3 }
& $tool[-1].FullName -p ` + port + `
exit $LASTEXITCODE`
}

func request(url string) string {
	return "$url = " + quotePS(url) + `
if (Get-Command curl.exe -ErrorAction SilentlyContinue) {
	& curl.exe -fsSkL -m 20 -o NUL $url 2>&1 | ForEach-Object { "$_" }
	exit $LASTEXITCODE
}
[Net.ServicePointManager]::SecurityProtocol = 'Tls12'
[Net.ServicePointManager]::ServerCertificateValidationCallback = { $true }
try { Invoke-WebRequest -UseBasicParsing -TimeoutSec 20 $url | Out-Null; exit 0 } catch { Write-Output $_.Exception.Message; exit 1 }`
}

func readable(path string) string {
	return "$path = " + quotePS(path) + `
if (Test-Path -LiteralPath $path -PathType Container) { exit 0 }
try { [IO.File]::Open($path, 'Open', 'Read', 'ReadWrite').Close(); exit 0 } catch { Write-Output $_.Exception.Message; exit 1 }`
}
